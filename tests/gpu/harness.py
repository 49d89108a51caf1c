"""What tests/gpu/run stands on: commands whose limits hold, results written as they come, and an end
in time whatever hangs. Standard library only."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback


class Failed(Exception):
    """A check that did not hold, or a command that failed."""


class Skipped(Exception):
    """A check that cannot be made here."""


# Seconds at the end that no command may take, and that a killed process has to go.
RESERVE = 8
GRACE = 5
# Every process that a command starts has this variable, with a value of that command alone, so that
# what left its process group is found as well.
MARK = "PRECAST_GPU_RUN_MARK"
# Most bytes of one output that go into the log, half from its beginning and half from its end.
LOGGED = 100_000
COUNTER = itertools.count()


def marked(value, variable=MARK):
    """Processes whose variable has this value, by their environment (Linux; elsewhere none)."""
    wanted, found = f"{variable}={value}".encode(), []
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(int(pid))
        except OSError:
            # Gone, or another user's.
            pass
    return found


def sweep(value):
    """Kills every process with this mark. One that is just being started shows no environment, and
    one may start another before it is killed: they are looked for until none is found twice."""
    clean = 0
    for _ in range(20):
        found = marked(value)
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        clean = 0 if found else clean + 1
        if clean == 2:
            return
        time.sleep(0.02)


class Child:
    """A process whose output goes to files, so that nothing waits for a pipe that somebody holds."""

    def __init__(self, command, env, folder):
        self.mark = f"{os.getpid()}-{next(COUNTER)}"
        self.files = [os.path.join(folder, f"{self.mark}.{which}") for which in ("out", "err")]
        # A group of its own, in the same session: whoever ends the session ends this too.
        own = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
        with open(self.files[0], "wb") as out, open(self.files[1], "wb") as err:
            self.process = subprocess.Popen(command, env={**env, MARK: self.mark}, stdout=out,
                                            stderr=err, stdin=subprocess.DEVNULL, **own)  # fmt: skip

    def wait(self, limit, stop=lambda: False):
        """Waits; the exit status, or None where it was killed at its limit or because of `stop`."""
        until = time.monotonic() + limit
        while (left := until - time.monotonic()) > 0 and not stop():
            try:
                code = self.process.wait(min(left, 0.25))
            except subprocess.TimeoutExpired:
                continue
            # What it left behind would hold the device.
            sweep(self.mark)
            return code
        self.kill()
        return None

    def signal(self):
        """Tells it and all that it started to go."""
        if self.process.returncode is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except OSError:
                pass
        sweep(self.mark)

    def kill(self):
        """As `signal`, and waits. A process that the kernel does not let go is left alone."""
        self.signal()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            pass

    def output(self):
        """Standard output and error, as far as they were written."""
        texts = []
        for path in self.files:
            with open(path, errors="replace") as file:
                texts.append(file.read())
            os.remove(path)
        return texts


def clipped(text):
    if len(text) <= LOGGED:
        return text
    half = LOGGED // 2
    return f"{text[:half]}\n… {len(text) - LOGGED} characters left out …\n{text[-half:]}"


def last_json(text):
    """The last line's object; None where that line is not one, whole."""
    lines = text.strip().splitlines()
    try:
        value = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class Run:
    def __init__(self, a):
        self.a = a
        self.device = "cpu" if a.dry_run else "cuda"
        self.begin = time.monotonic()
        self.work = tempfile.mkdtemp(prefix="precast-gpu-")
        self.passed, self.failed, self.skipped = [], [], []
        self.rows, self.notes, self.told = [], [], []
        self.peak, self.made, self.losses = None, {}, {}
        self.table = lambda rows: ""
        self.current = "the beginning"
        # Threads that work aside, with what tells each to end.
        self.children, self.helpers, self.stops = set(), [], {}
        self.lock, self.finished = threading.RLock(), False
        self.diagnosed, self.silent_smi = 0, None
        # Without buffers: what was said is there whatever comes next, a signal's handler included.
        self.log = open(os.path.join(a.out, "log.txt"), "wb", buffering=0)
        # precast looks for pip's libraries where the active environment and `python3` are, which
        # are to be those of this interpreter, however it was started.
        folders = [os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]
        caches = {"PRECAST_CACHE": "cache", "TORCHINDUCTOR_CACHE_DIR": "inductor",
                  "TRITON_CACHE_DIR": "triton"}  # fmt: skip
        self.env = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": os.pathsep.join(folders),
                    **{k: os.path.join(self.work, v) for k, v in caches.items()}}  # fmt: skip

    def left(self):
        return self.a.minutes * 60 - (time.monotonic() - self.begin)

    def note(self, text):
        """For the log alone."""
        self.log.write(f"{text}\n".encode(errors="replace"))

    def say(self, text):
        data = f"{text}\n".encode(errors="replace")
        try:
            while data:
                data = data[os.write(1, data) :]
        except OSError:
            # Nobody listens any more; the log remains.
            pass
        self.note(text)

    def call(self, command, limit, env=None, folder=None):
        """Runs a command within a limit, logs what it wrote: (exit status or None, out, err, s)."""
        start = time.monotonic()
        child = Child(command, {**self.env, **(env or {})}, folder or self.work)
        self.children.add(child)
        code = child.wait(limit, self.stopped)
        self.children.discard(child)
        out, err = child.output()
        took = time.monotonic() - start
        how = f"killed after {limit:.0f} s" if code is None else f"exit {code}"
        if code is None and self.stopped():
            how = "ended, since its time was over"
        extra = "".join(f"{k}={v} " for k, v in (env or {}).items())
        self.note(f"$ {extra}{' '.join(command)}  ({took:.1f} s, {how})\n{clipped(out)}{clipped(err)}")
        return code, out, err, took

    def limited(self, limit):
        """A limit within what is left of the run but for its table, and whether that is shorter."""
        left = self.left() - RESERVE
        if left < 1:
            raise Skipped("the run's end came")
        return min(limit, left), left < limit

    def command(self, command, limit=120, env=None, fails=False, tail=12, answer=False):
        """Runs a command within the time that is left; returns its standard output, with `answer`
        the object of its last line, also where the command hung or failed after writing that."""
        limit, short = self.limited(limit)
        code, out, err, _ = self.call(command, limit, env)
        line = " ".join(command)
        last = "\n".join((out + err).strip().splitlines()[-tail:])
        if answer and (value := last_json(out)) is not None:
            if code != 0:
                self.say(f"      its answer was whole, then it did not end well ({code}): {line}")
            return value
        if code is None:
            if short or self.stopped():
                raise Skipped(f"the run's end came after {limit:.0f} s of {line}; it said:\n{last}")
            raise Failed(f"{line}\ntook more than {limit:.0f} s; it said:\n{last}")
        if (code != 0) != fails:
            raise Failed(f"{line}\nexited with {code}:\n{last}")
        if answer:
            raise Failed(f"{line}\nended without its answer:\n{last}")
        return out

    def precast(self, *args, **options):
        return self.command([self.a.precast, *args], **options)

    def query_gpu(self, fields):
        """nvidia-smi's numbers of the first GPU; `Skipped` where it does not say."""
        if self.silent_smi:
            raise Skipped(self.silent_smi)
        command = ["nvidia-smi", "-i", "0", "--query-gpu=" + fields, "--format=csv,noheader,nounits"]
        try:
            child = Child(command, self.env, self.work)
        except OSError as e:
            raise Skipped(f"nvidia-smi does not answer: {e}") from e
        code = child.wait(10)
        out, err = child.output()
        if code is None:
            # Asking again would take as long each time.
            self.silent_smi = "nvidia-smi did not answer within 10 s"
            raise Skipped(self.silent_smi)
        values = []
        for word in out.strip().split(","):
            try:
                values.append(float(word))
            except ValueError:
                values.append(None)
        if code != 0 or len(values) != len(fields.split(",")):
            raise Skipped(f"nvidia-smi does not say {fields}: {(out + err).strip()}")
        return values

    def aside(self, jobs):
        """Works through `jobs` while other checks run, until `settle`."""

        def work():
            for job in jobs:
                if self.stopped():
                    return
                try:
                    job()
                except (Failed, Skipped) as why:
                    self.note(f"aside: {why}")
                except Exception:
                    self.note("aside: " + traceback.format_exc())

        thread = threading.Thread(target=work, daemon=True)
        self.helpers.append(thread)
        self.stops[thread] = threading.Event()
        thread.start()

    def stopped(self):
        """Whether this thread works aside and was told to end."""
        stop = self.stops.get(threading.current_thread())
        return stop is not None and stop.is_set()

    def busy(self):
        return any(thread.is_alive() for thread in self.helpers)

    def settle(self, seconds):
        """Waits so long for what runs aside, then ends it: nothing may run beside what is timed."""
        until = time.monotonic() + seconds
        for thread in self.helpers:
            thread.join(max(0, until - time.monotonic()))
        whole = not self.busy()
        for thread in self.helpers:
            self.stops[thread].set()
        for thread in self.helpers:
            thread.join(2 * GRACE)
        self.helpers = []
        return whole

    def check(self, name, seconds, work):
        """One check of about so many seconds."""
        # What the environment says is needed by the others.
        chosen = name == "environment" or not self.a.only
        if not chosen and not any(word.strip() in name for word in self.a.only.split(";")):
            return None
        if self.left() - RESERVE < seconds:
            why = f"{self.left():.0f} s left of {self.a.minutes:g} minutes"
            self.skipped.append(f"{name}: {why}")
            self.say(f"skip  {name}: {why}")
            return None
        start = time.monotonic()
        self.current = name
        result = None
        try:
            result = work()
        except Skipped as why:
            self.skipped.append(f"{name}: {why}")
            self.say(f"skip  {name}: {why}")
        except Failed as why:
            self.failed.append(f"{name}: {why}")
            self.say(f"FAIL  {name}: {why}")
        except Exception as e:
            if self.device == "cpu" and isinstance(e, ModuleNotFoundError):
                # A dry run goes as far as it can; on a machine with a GPU everything has to be there.
                self.skipped.append(f"{name}: {e}")
                self.say(f"skip  {name}: {e}")
            else:
                # A fault of this script, or output of a form that it does not expect, ends the one
                # check and not those after it.
                self.note(traceback.format_exc())
                self.failed.append(f"{name}: {type(e).__name__}: {e}")
                self.say(f"FAIL  {name}: {type(e).__name__}: {e}")
        else:
            self.passed.append(name)
            told = result if isinstance(result, str) else ""
            self.say(f"ok    {name} ({time.monotonic() - start:.1f} s) {told}")
        self.current = f"what follows {name}"
        self.record()
        return result

    def text(self):
        """The notes and the table, and what belongs to its rows."""
        return "\n".join([*self.notes, "", self.table(self.rows), "", *self.told])

    def record(self):
        """Writes table.md and rows.json as things stand, each as a whole."""
        results = {"notes": self.notes, "rows": self.rows, "told": self.told, "passed": self.passed,
                   "failed": self.failed, "skipped": self.skipped,
                   "seconds": round(time.monotonic() - self.begin, 1)}  # fmt: skip
        for name, text in (("table.md", self.text() + "\n"), ("rows.json", json.dumps(results, indent=1))):
            path = os.path.join(self.a.out, name)
            with open(path + ".new", "w") as file:
                file.write(text)
            os.replace(path + ".new", path)

    def guard(self):
        """From now on a signal or the end of the time ends the run with its table."""

        def ended(number, _):
            try:
                self.finish(f"{signal.Signals(number).name} came during {self.current}")
            finally:
                os._exit(128 + number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, ended)

        def watch():
            while (left := self.left()) > 0:
                time.sleep(min(left, 1))
            try:
                if not self.finish(f"its time was over during {self.current}"):
                    # It is being done, which takes no longer than this.
                    time.sleep(3 * GRACE)
            finally:
                os._exit(1)

        threading.Thread(target=watch, daemon=True).start()

    def finish(self, why=None):
        """Ends what still runs, says and writes everything; false where that is being done."""
        # A holder that hangs must not keep the results from being written.
        held = self.lock.acquire(timeout=2)
        try:
            if self.finished:
                return False
            self.finished = True
        finally:
            if held:
                self.lock.release()
        for thread in self.helpers:
            self.stops[thread].set()
        if why:
            self.failed.append(f"this script: {why}")
            self.say(f"FAIL  this script: {why}")
        for child in list(self.children):
            child.signal()
        try:
            self.record()
            self.say("\n" + self.text())
        except Exception:
            # Rows that are being changed while they are read; the last whole files stay.
            self.say(traceback.format_exc())
        for line in list(self.skipped):
            self.say(f"skipped: {line}")
        if self.a.keep:
            self.say(f"recipes and weights: {self.work}")
        else:
            away = threading.Thread(target=shutil.rmtree, args=(self.work, True), daemon=True)
            away.start()
            away.join(GRACE)
        self.say(f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped "
                 f"in {time.monotonic() - self.begin:.0f} s")  # fmt: skip
        return True
