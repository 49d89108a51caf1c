"""Checks on a GPU: gradients, losses, capture, skipped steps, memory, the test programs of the pack."""

import glob
import json
import os
import shutil
import statistics
import tempfile
import threading
import time

from harness import Failed, Skipped

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
# In a pack everything lies beside this script; in the repository, where it belongs.
PACKED = os.path.isdir(os.path.join(HERE, "fixtures"))
FIXTURES = os.path.join(HERE, "fixtures") if PACKED else os.path.join(ROOT, "tests", "fixtures")

# As tests/parity.rs has it for a processor: relative L2 distance of an f32 gradient from f64.
F32_GRADIENTS = {"mlp_mnist": 1e-5, "cifar_cnn": 5e-5, "tiny_gpt": 1e-5}

# What the `device` line of `precast train` says of a captured step and of one that is not.
CAPTURED, UNCAPTURED = "one graph a step", "steps launched one by one"


def toml(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def recipe(path, model, data, policy, optimizer, weights=None, **more):
    """Writes a recipe over a batch with one input and `targets`; `more` are further tables."""
    source = "input_ids" if "gpt" in model else "x"
    tables = {
        "data": {"format": "safetensors", "file": data, "inputs": {source: "in." + source},
                 "targets": {"targets": "tgt.targets"}},
        "loss": {"kind": "cross_entropy", "prediction": "logits", "target": "targets"},
        "optimizer": optimizer,
        "precision": {"policy": policy},
        "train": {"steps": 20, "seed": 0},
    }  # fmt: skip
    if weights:
        tables["weights"] = {"file": weights}
    for name, table in more.items():
        tables.setdefault(name, {}).update(table)
    lines = ["model = " + toml(model)]
    for name, table in tables.items():
        lines += ["", f"[{name}]"] + [f"{k} = {toml(v)}" for k, v in table.items()]
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    return path


SGD = {"kind": "sgd", "lr": 0.1}
ADAMW = {"kind": "adamw", "lr": 1e-3, "weight_decay": 0.01}


def fixture(run, name, policy, optimizer, **more):
    folder = os.path.abspath(os.path.join(FIXTURES, name))
    path = os.path.join(run.work, f"{name}.{policy}.{len(os.listdir(run.work))}.toml")
    model = os.path.join(folder, "model_static.onnx")
    return recipe(path, model, os.path.join(folder, "batch.safetensors"), policy, optimizer,
                  loss={"ignore_index": -100}, **more)  # fmt: skip


class Tail:
    """When the lines of a growing file came: the log is written line by line, unbuffered."""

    def __init__(self, path):
        self.path, self.ended, self.came = path, threading.Event(), [(time.monotonic(), 0)]
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        last, offset, count = False, 0, 0
        while not last:
            # What came before the end is read once more after it.
            last = self.ended.wait(0.005)
            try:
                with open(self.path, "rb") as file:
                    file.seek(offset)
                    data = file.read()
            except OSError:
                continue
            offset += len(data)
            if lines := data.count(b"\n"):
                count += lines
                self.came.append((time.monotonic(), count))

    def wall(self, first, last):
        """Seconds a step by the clock, from the line of step `first` to that of `last`."""
        self.ended.set()
        self.thread.join()
        at = [next((when for when, count in self.came if count >= n), None) for n in (first, last)]
        return None if None in at or first >= last else (at[1] - at[0]) / (last - first)


class Trained:
    """What one run of `precast train` left."""

    def __init__(self, rows, out, said, tail):
        self.rows, self.out, self.tail = rows, out, tail
        lines = dict(line.split(None, 1) for line in said.splitlines() if len(line.split(None, 1)) == 2)
        self.how, self.memory = lines.get("device", ""), lines.get("tensors", "")
        self.captured = CAPTURED in self.how
        # After the device and how steps are launched come notices of what runs otherwise.
        self.notices = [part.strip() for part in self.how.split(";")[1:]]

    def losses(self):
        return [r["loss"] for r in self.rows]


def diagnosis(run, args, env):
    """What the same command does otherwise, after it failed on a GPU; told with the failure."""
    if run.device == "cpu" or run.diagnosed >= 3 or run.left() < 150:
        return ""
    run.diagnosed += 1
    others = [({"PRECAST_CUDA_GRAPH": "check"}, []), ({"PRECAST_CUDNN": "0"}, [])]
    sanitizer = tool("compute-sanitizer")
    if run.diagnosed == 1 and sanitizer:
        # Under it no step is captured, so that it names the kernel.
        others.append(({"PRECAST_CUDA_GRAPH": "0"}, [sanitizer]))
    told = []
    for more, before in others:
        code, out, err, _ = run.call([*before, run.a.precast, *args], 30, {**(env or {}), **more})
        last = "\n".join((out + err).strip().splitlines()[-6:])
        named = " ".join([*(f"{k}={v}" for k, v in more.items()), *map(os.path.basename, before)])
        how = {None: "took more than 30 s", 0: "succeeds"}.get(code, f"exits with {code}")
        told.append(f"with {named} it {how}" + ("" if code == 0 else f":\n{last}"))
    return "\n" + "\n".join(told)


def tool(name):
    """One of the CUDA toolkit's tools, where it is."""
    places = glob.glob("/usr/local/cuda*/bin") + glob.glob("/opt/nvidia/nsight-compute/*")
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def precast(run, *args, env=None, limit=60, diagnosed=True):
    """As `run.precast`; a failure on the GPU is told with what the same command does otherwise."""
    try:
        return run.precast(*args, env=env, limit=limit)
    except Failed as why:
        on_gpu = diagnosed and args[args.index("--device") + 1].startswith("cuda")
        more = diagnosis(run, args, env) if on_gpu else ""
        raise Failed(f"{why}{more}") from why


def train(run, path, steps, device=None, env=None, limit=60, verbose=False, diagnosed=True):
    """Trains a recipe for so many steps."""
    out = tempfile.mkdtemp(dir=run.work)
    log = os.path.join(out, "log.jsonl")
    tail = Tail(log)
    # A replay of skipped steps on the processor would take the time of what is measured.
    try:
        said = precast(run, "train", path, "--steps", str(steps), "--log", log, "--out", out,
                       "--blame", "0", "--device", device or run.device, *["-v"] * verbose, env=env,
                       limit=limit, diagnosed=diagnosed)  # fmt: skip
    finally:
        tail.ended.set()
    with open(log) as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    rows = [r for r in rows if "step" in r]
    if len(rows) != steps:
        raise Failed(f"the log has {len(rows)} steps instead of {steps}")
    return Trained(rows, out, said, tail)


def distance(have, want):
    have, want = have.double().flatten(), want.double().flatten()
    return ((have - want).norm() / want.norm().clamp_min(1e-30)).item()


def meta(name):
    with open(os.path.join(FIXTURES, name, "meta.json")) as file:
        return json.load(file)


def gradients(run, name, policy):
    """Gradients of a fixture on the device against PyTorch's in f64, and against the processor's.

    In 16 bits a gradient may be twice as far as that of PyTorch's bf16 autocast, as in parity.rs.
    """
    try:
        return gradients_with(run, name, policy, None)
    except Failed as why:
        if run.device == "cpu" or run.left() < 150:
            raise
        # Whose fault is it?
        try:
            other = gradients_with(run, name, policy, {"PRECAST_CUDNN": "0"})
        except Failed as second:
            other = f"they fail too: {second}"
        raise Failed(f"{why}\nwith PRECAST_CUDNN=0: {other}") from why


def gradients_with(run, name, policy, env):
    import tensors

    path = fixture(run, name, policy, SGD)
    reference = tensors.load(os.path.join(FIXTURES, name, "reference.safetensors"))
    far = meta(name)["grad_rel_l2_err_vs_f64"]["bf16"]
    results = {}
    for device in dict.fromkeys([run.device, "cpu"]):
        out = os.path.join(run.work, f"{os.path.basename(path)}.{device}.safetensors")
        precast(run, "grad", path, "-o", out, "--device", device, env=env)
        results[device] = tensors.load(out)
    worst, apart, faults = (0.0, ""), 0.0, []
    for key, value in results[run.device].items():
        if not key.startswith("grad."):
            continue
        known = key.removeprefix("grad.").replace("lm_head.weight", "wte.weight")
        away = distance(value, reference["grad." + known])
        allowed = F32_GRADIENTS[name] if policy == "f32" else 2 * far[known]
        if not away <= allowed:
            faults.append(f"{key} is {away:.1e} away, allowed {allowed:.1e}")
        worst = max(worst, (away, key))
        apart = max(apart, distance(value, results["cpu"][key]))
    if not worst[1]:
        raise Failed("no gradients were written")
    if faults:
        raise Failed("; ".join(faults))
    return f"farthest {worst[0]:.1e} ({worst[1]}); from the processor {apart:.1e}"


def twenty_losses(run, name, kind):
    """Twenty steps in f32 beside PyTorch's: within 1e-4, or five times what f32 and f64 are apart
    there, since batch normalisation amplifies rounding from step to step."""
    import tensors

    reference = tensors.load(os.path.join(FIXTURES, name, "reference.safetensors"))
    f32, f64 = (reference[f"losses20.{kind}.{f}"].double().tolist() for f in ("f32", "f64"))
    words = ("lr", "momentum") if kind == "sgd" else ("lr", "betas", "eps", "weight_decay")
    optimizer = {"kind": kind, **{k: meta(name)[kind][k] for k in words}}
    rows = train(run, fixture(run, name, "f32", optimizer), 20).rows
    worst = 0.0
    for i, (r, b, x) in enumerate(zip(rows, f32, f64)):
        away, allowed = abs(r["loss"] - b), 1e-4 * b
        if name == "cifar_cnn":
            allowed = max(allowed, 5 * abs(b - x))
        if not away <= allowed:
            raise Failed(f"step {i + 1}: {r['loss']} against {b}, allowed {allowed:.1e}")
        worst = max(worst, away / b)
    return f"{worst:.1e} apart at most"


def bytes_of(folder):
    with open(os.path.join(folder, "weights.safetensors"), "rb") as file:
        return file.read()


def capture(run, name, policy):
    """A captured step has the bits of steps launched one by one; a repeated run its own."""
    path = fixture(run, name, policy, ADAMW)
    envs = [{}, {}, {"PRECAST_CUDA_GRAPH": "0"}]
    runs = [train(run, path, 12, env=env) for env in envs]
    for which, (env, t) in enumerate(zip(envs, runs) if run.device != "cpu" else []):
        # Else the three would be equal because they are the same.
        if t.captured == bool(env) or (UNCAPTURED in t.how) != bool(env):
            raise Failed(f"run {which + 1} of 3 was to be {'un' * bool(env)}captured: {t.how}")
    losses, weights = [t.losses() for t in runs], [bytes_of(t.out) for t in runs]
    if losses[0] != losses[1] or weights[0] != weights[1]:
        raise Failed("two equal runs differ")
    if losses[0] != losses[2] or weights[0] != weights[2]:
        raise Failed("the captured run differs from the uncaptured one")
    return "; ".join(["bit for bit", *runs[0].notices])


def overflow(run, name):
    """A scale that overflows: steps are skipped, change nothing, and training goes on."""
    scale = {"mode": "dynamic", "init": 2.0**40, "interval": 1000}
    path = fixture(run, name, "f16", SGD, loss_scale=scale)
    rows = train(run, path, 40).rows
    skipped = [r["skipped"] for r in rows]
    if not skipped[0] or skipped[-1]:
        raise Failed(f"skipped: {skipped}")
    last = skipped.index(False)
    if any(r["loss"] != rows[0]["loss"] for r in rows[:last]):
        raise Failed("a skipped step changed the loss")
    if rows[last]["scale"] != rows[0]["scale"] / 2**last:
        raise Failed(f"after {last} skipped steps the scale is {rows[last]['scale']}")
    processor = train(run, path, 40, device="cpu").rows
    if [r["skipped"] for r in processor] != skipped:
        raise Failed("the processor skips other steps")
    return f"{last} steps skipped, then scale {rows[last]['scale']:g}"


def used_bytes(run):
    """Memory in use on the first GPU, all processes together."""
    return run.query_gpu("memory.used")[0] * 2**20


class Peak:
    """Memory in use on the GPU while something runs, above what was in use before, and its clock
    and power."""

    def __init__(self, run):
        self.run = run

    def __enter__(self):
        self.before, self.samples, self.clocks = used_bytes(self.run), [], []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self):
        while not self.stop.wait(0.05):
            try:
                memory, clock, power = self.run.query_gpu("memory.used,clocks.sm,power.draw")
            except Skipped:
                # One answer that did not come leaves the others.
                continue
            if memory is not None:
                self.samples.append(memory * 2**20 - self.before)
                self.clocks.append((clock, power))

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(15)

    def working(self):
        """Medians of clock (MHz) and power (W) while most of the memory was in use."""
        most = max(self.samples, default=0)
        busy = [c for s, c in zip(self.samples, self.clocks) if s > most / 2 > 0 and None not in c]
        if not busy:
            return {}
        clock, power = (statistics.median(values) for values in zip(*busy))
        return {"sm_mhz": clock, "watts": power}


def leak(run):
    """Memory on the device does not grow over steps, and is given back."""
    if run.device == "cpu":
        raise Skipped("there is no device")
    path = fixture(run, "tiny_gpt", "bf16", ADAMW)
    before = used_bytes(run)
    with Peak(run) as peak:
        train(run, path, 20000, limit=90)
    busy = [s for s in peak.samples if s > 2**26]
    if len(busy) < 8:
        raise Skipped("the run was too short to sample its memory")
    middle, end = statistics.median(busy[len(busy) // 2 - 2 :][:4]), max(busy[-4:])
    time.sleep(0.5)
    after = used_bytes(run)
    if end > middle + 2**22:
        raise Failed(f"memory grew from {middle / 2**20:.0f} to {end / 2**20:.0f} MiB")
    if after > before + 2**22:
        raise Failed(f"{(after - before) / 2**20:.0f} MiB were not given back")
    return f"{end / 2**20:.0f} MiB throughout, {len(busy)} samples"


def binaries(run):
    """Test programs that `pack` found, on this device."""
    tests = sorted(glob.glob(os.path.join(HERE, "tests", "*")))
    if not tests:
        raise Skipped("the pack holds no test programs")
    lines, faults, skips = [], [], []
    for test in tests:
        # By cuDNN where it is there, then by the kernels that stand in for it: both, whatever the
        # first one says.
        for cudnn in ("1", "0"):
            env = {"PRECAST_FIXTURES": os.path.abspath(FIXTURES), "PRECAST_CUDNN": cudnn}
            try:
                out = run.command([test, "--include-ignored", "gpu"], limit=90, env=env, tail=200)
            except (Failed, Skipped) as why:
                kind = faults if isinstance(why, Failed) else skips
                kind.append(f"PRECAST_CUDNN={cudnn}: {why}")
                continue
            # The harness may have written the test's name before it.
            skipped = [line for line in out.splitlines() if "SKIPPED" in line]
            if skipped and run.device == "cpu":
                raise Skipped(skipped[0])
            faults += skipped
            lines += [line for line in out.splitlines() if " steps, " in line]
    if faults:
        raise Failed("\n".join(faults + skips))
    if skips:
        raise Skipped("\n".join(skips))
    return "\n      ".join([", ".join(map(os.path.basename, tests)), *lines])
