"""Benchmarks of Precast beside PyTorch on one machine, the table of them, and where the time goes."""

import csv
import glob
import itertools
import math
import os
import statistics
import sys
import tarfile
import time

from checks import HERE, PACKED, ROOT, Peak, recipe, tool, train, used_bytes
from harness import Failed, Skipped

MODELS = os.path.join(HERE, "models") if PACKED else os.path.join(ROOT, "target", "gpu", "models")
MODELS = os.environ.get("PRECAST_GPU_MODELS", MODELS)

# Dense 16-bit peak of a board by a word of its name, TFLOP/s, from its data sheet.
PEAKS = {"B200": 2250, "H200": 989, "H100": 989, "A100": 312, "V100": 125}

# Seconds of steady steps before either side is timed, and that the run takes which is sampled.
WARM, SAMPLED = 1.0, 2.0
# The losses of this step (from 1, skipped ones not counted) are compared as well as the first ones:
# an update has then gone through every gradient. How far apart they may be, as a part of PyTorch's:
# two runs in f32 that differ in rounding alone are 1 % apart for ResNet-50 after two steps.
COMPARED = 10
APART = {"gpt2_small": 0.03, "resnet50": 0.2, "cifar_cnn": 0.1, "gpt_dry": 0.03, "cnn_dry": 0.1}


def bench(name, *more):
    return [sys.executable, "-W", "ignore", os.path.join(HERE, "bench.py"), name, *more]


def make(run, name):
    """Writes the network's weights and its batch, and counts its operations; once."""
    files = [os.path.join(run.work, f"{name}.{w}.safetensors") for w in ("w", "b")]
    if name not in run.made:
        run.made[name] = run.command(bench(name, "--weights", files[0], "--batch", files[1]), answer=True)
    return run.made[name], *files


def warm_up(run, name):
    """Fills the compiler's caches, which takes PyTorch far longer than what is measured."""
    run.command(bench(name, "--mode", "graphs", "--steps", "1", "--warmup", "3"), limit=240, answer=True)


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def add(run, name, precision, side, seconds, made, more):
    """A row of the table, at once in the files."""
    import nets

    case = nets.CASES[name]
    ms = 1e3 * statistics.median(seconds)
    r = {"model": name, "precision": precision, "side": side, "ms": ms, "steps": len(seconds),
         "p10_ms": 1e3 * percentile(seconds, 0.1), "p90_ms": 1e3 * percentile(seconds, 0.9),
         "rate": case["rows"] * case["per_row"] / ms * 1e3, "unit": case["unit"],
         "flops": made["flops"], **more}  # fmt: skip
    if run.peak and precision in ("bf16", "f16"):
        r["mfu"] = made["flops"] / (ms * 1e-3) / (run.peak * 1e12)
    run.rows.append(r)
    told = {k: v for k, v in r.items() if k != "flops" and not isinstance(v, (list, dict))}
    run.say("      " + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                                 for k, v in told.items()))  # fmt: skip
    run.record()
    return r


def tell(run, text):
    """A line under the table."""
    run.told.append("- " + text)
    run.say("      " + text)


def pytorch(run, name, precision, mode, steps):
    """PyTorch in one mode; its losses, and how many of the first steps it skipped."""
    made = make(run, name)[0]
    warm = WARM if run.device == "cuda" else 0
    command = bench(name, "--precision", precision, "--mode", mode, "--device", run.device,
                    "--steps", str(steps), "--warm-seconds", str(warm))  # fmt: skip
    idle = idle_bytes(run)
    out = run.command(command, limit=120, answer=True)
    more = {"wall_ms": 1e3 * out["wall"], "ready_s": out["ready"], "torch": out["torch"]}
    # It keeps what it once took: what is in use at the end is the most.
    if idle is not None and "used_bytes" in out:
        more["peak_mb"] = (out["used_bytes"] - idle) / 1e6
    kept = ("device_bytes", "allocated_bytes", "reserved_bytes", "sm_mhz", "watts", "counters",
            "attention_ms")  # fmt: skip
    more.update((k, out[k]) for k in kept if out.get(k))
    side, counted = f"PyTorch {mode}", out["counters"]
    if mode == "graphs" and counted.get("cudagraph_skips"):
        side += ", CUDA graphs skipped"
        tell(run, f"{name} {precision}: PyTorch took no CUDA graph {counted['cudagraph_skips']} times; "
                  "its row is not that of its fastest mode")  # fmt: skip
    if counted.get("graph_breaks"):
        tell(run, f"{name} {precision}, {side}: {counted['graph_breaks']} breaks of its graph")
    if out["attention_ms"]:
        best = min(out["attention_ms"], key=out["attention_ms"].get)
        tell(run, f"{name} {precision}, {side}: attention by {best}")
    add(run, name, precision, side, out["seconds"], made, more)
    return out["losses"], out["skips"]


def idle_bytes(run):
    try:
        return used_bytes(run) if run.device == "cuda" else None
    except Skipped:
        return None


def precast(run, name, precision, steps):
    """Precast: cold, timed, and once more while its memory, clock and power are sampled. Its losses,
    and how many of the first steps it skipped."""
    import nets

    made, weights, data = make(run, name)
    policy = {"tf32": "f32"}.get(precision, precision)
    path = os.path.join(run.work, f"{name}.{policy}.toml")
    model = os.path.join(MODELS, f"{name}.onnx")
    recipe(path, model, data, policy, nets.CASES[name]["optimizer"], weights)
    side, env, fault = "Precast", {}, None
    # Kernels are compiled and candidates measured once; the timed run finds them in the cache.
    start = time.monotonic()
    try:
        cold = train(run, path, 4, limit=120, verbose=True, diagnosed=False)
    except Failed as why:
        if run.device == "cpu":
            raise
        try:
            train(run, path, 4, env={"PRECAST_CUDA_GRAPH": "check"}, limit=30, diagnosed=False)
            other = "it succeeds"
        except Failed as second:
            other = second
        fault = f"{why}\nwith PRECAST_CUDA_GRAPH=check: {other}"
        run.say(f"      {fault}")
        side, env = "Precast, PRECAST_CUDNN=0", {"PRECAST_CUDNN": "0"}
        start = time.monotonic()
        cold = train(run, path, 4, env=env, limit=120, verbose=True)
    took = {"cold_s": time.monotonic() - start}
    step = max(1e-6, min(r["seconds"] for r in cold.rows))
    warm, sampled = COMPARED, 0
    if run.device == "cuda":
        warm, sampled = (min(5000, max(n, math.ceil(s / step))) for n, s in ((warm, WARM), (steps, SAMPLED)))
    start = time.monotonic()
    timed = train(run, path, warm + steps, env=env, limit=60)
    took["run_s"] = time.monotonic() - start
    if run.device == "cuda" and not timed.captured:
        side += ", uncaptured"
    for notice in timed.notices:
        tell(run, f"{name} {precision}, {side}: {notice}")
    more = {**took, "device": timed.how, "memory": timed.memory, "notices": timed.notices}
    wall = timed.tail.wall(warm, warm + steps)
    if wall is not None:
        more["wall_ms"] = 1e3 * wall
    seconds = [r["seconds"] for r in timed.rows[warm:] if not r["skipped"]]
    row = add(run, name, precision, side, seconds, made, more)
    if sampled and run.left() > 40:
        # Asking takes the driver's time: this run is not the timed one, but a second look at it.
        try:
            with Peak(run) as peak:
                again = train(run, path, warm + sampled, env=env, limit=60)
            row["again_ms"] = 1e3 * statistics.median(r["seconds"] for r in again.rows[warm:])
            if peak.samples:
                row["peak_mb"] = max(peak.samples) / 1e6
            row.update(peak.working())
            run.say("      again " + "  ".join(f"{k} {row[k]:.4g}" for k in
                    ("again_ms", "peak_mb", "sm_mhz", "watts") if k in row))  # fmt: skip
        except (Failed, Skipped) as why:
            run.skipped.append(f"memory of {name} {precision}: {why}")
        run.record()
    skips = sum(r["skipped"] for r in timed.rows[:COMPARED])
    return timed.losses(), skips, fault


def agree(name, precision, ours, theirs):
    """What is wrong with the losses of both sides from equal weights on one batch, or None."""
    (have, skipped), (want, left_out) = ours, theirs
    tolerance = 1e-3 if precision == "f32" else 2e-2
    if not abs(have[0] - want[0]) <= tolerance * abs(want[0]):
        return f"the first losses differ: {have[0]} and {want[0]} of PyTorch"
    at, to = COMPARED - 1 + skipped, COMPARED - 1 + left_out
    if len(have) <= at or len(want) <= to:
        return f"there are only {len(have)} and {len(want)} losses to compare"
    if not have[at] < have[0]:
        return f"the loss did not fall: {have[0]}, then {have[at]}"
    if not abs(have[at] - want[to]) <= APART[name] * abs(want[to]):
        return f"the losses of step {COMPARED} differ: {have[at]} and {want[to]} of PyTorch"
    return None


def benchmark(run, name, precision, sides, steps):
    """One network in one precision on one batch: `ours`, and PyTorch in each mode."""
    if not os.path.exists(os.path.join(MODELS, f"{name}.onnx")):
        raise Skipped(f"there is no {name}.onnx in {MODELS}; `pack` exports it")
    losses, faults = run.losses.setdefault((name, precision), {}), []
    for side in sides:
        called = "Precast" if side == "ours" else f"PyTorch {side}"
        if run.left() < 30 and run.device == "cuda":
            run.skipped.append(f"{name} {precision}, {called}: out of time")
            continue
        try:
            if side == "ours":
                *losses[side], fault = precast(run, name, precision, steps)
                if fault is not None:
                    faults.append(f"only PRECAST_CUDNN=0 runs: {fault}")
            else:
                losses[side] = pytorch(run, name, precision, side, steps)
        except Skipped as why:
            run.skipped.append(f"{name} {precision}, {called}: {why}")
        except Failed as why:
            # What PyTorch cannot compile here is no fault of ours; its eager mode is the reference.
            if side in ("ours", "eager"):
                faults.append(f"{called}: {why}")
            else:
                run.skipped.append(f"{name} {precision}, {called}: {why}")
                run.say(f"      skip  {called}: {why}")
    reference = losses.get("eager") or losses.get("graphs") or losses.get("compile")
    if "ours" in sides and "ours" in losses and reference:
        fault = agree(name, precision, losses["ours"], reference)
        if fault:
            faults.append(fault)
    elif "ours" in sides and not faults:
        raise Skipped("one side alone was measured, so that no losses were compared")
    if faults:
        raise Failed("; ".join(faults))
    return None


COLUMNS = {
    "model": lambda r: r["model"],
    "precision": lambda r: r["precision"],
    "side": lambda r: r["side"],
    "ms a step": lambda r: f"{r['ms']:.3f}",
    "p10–p90": lambda r: f"{r['p10_ms']:.3f}–{r['p90_ms']:.3f}" if "p10_ms" in r else "–",
    "again": lambda r: f"{r['again_ms']:.3f}" if "again_ms" in r else "–",
    "wall ms": lambda r: f"{r['wall_ms']:.3f}" if "wall_ms" in r else "–",
    "per second": lambda r: f"{r['rate']:.0f} {r['unit']}",
    "MFU": lambda r: f"{100 * r['mfu']:.1f} %" if "mfu" in r else "–",
    "peak MB": lambda r: f"{r['peak_mb']:.0f}" if "peak_mb" in r else "–",
    "MHz": lambda r: f"{r['sm_mhz']:.0f}" if "sm_mhz" in r else "–",
    "steps": lambda r: f"{r['steps']}",
}


def table(rows):
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(r) for cell in COLUMNS.values()) + " |" for r in rows]
    return "\n".join(lines)


# Under the table.
REMARKS = """\
- `ms a step` is what the GPU worked for a step, `wall ms` what a step took by the clock, from one to the
  next: the host's work and, for Precast, every batch's way to the device are in it. `per second` and MFU
  are of the former.
- PyTorch `graphs` is `torch.compile(mode="reduce-overhead")`: optimizer and gradient scaler run outside of
  its CUDA graphs. `max-autotune` was not run. PyTorch's batch stays on the device.
- `again` is a second Precast run, during which memory, clock and power were sampled."""


def step_of(names):
    """Where the last step begins in a list of kernels that ends with two equal ones: the longest end
    that is there twice. 0 where there is none."""
    for length in range(len(names) // 2, 0, -1):
        if names[-length:] == names[-2 * length : -length]:
            return len(names) - length
    return 0


def kernels(text):
    """Kernels and their nanoseconds, from the table that ncu writes."""
    lines = itertools.dropwhile(lambda line: not line.startswith('"ID"'), text.splitlines())
    units = {"ns": 1, "nsecond": 1, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "s": 1e9,
             "second": 1e9}  # fmt: skip
    found = []
    for r in csv.DictReader(lines):
        try:
            value = float(r["Metric Value"].replace(",", ""))
            found.append((r["Kernel Name"], value * units[r["Metric Unit"]]))
        except (KeyError, ValueError, TypeError, AttributeError):
            # Another line of ncu's among those of the table.
            continue
    return found


def by_kernel(found, rows=30):
    """The kernels of the last step by their time together."""
    start = step_of([name for name, _ in found])
    step, total = {}, 0
    for name, ns in found[start:]:
        count, sum_ns = step.get(name, (0, 0))
        step[name] = count + 1, sum_ns + ns
        total += ns
    lines = [f"{len(found) - start} kernels, {total / 1e6:.3f} ms"]
    for name, (count, ns) in sorted(step.items(), key=lambda kv: -kv[1][1])[:rows]:
        lines.append(f"{ns / 1e6:9.4f} ms {100 * ns / max(total, 1):5.1f} % {count:5d}  {name[:100]}")
    return lines


def kernel_times(run, name, precision):
    """Where Precast's time goes: every kernel of a step under ncu, uncaptured, by the choices that
    the benchmark left in the cache."""
    ncu = tool("ncu")
    if not ncu:
        raise Skipped("ncu is not there")
    path = os.path.join(run.work, f"{name}.{precision}.toml")
    if not os.path.exists(path):
        raise Skipped("the benchmark did not run")
    file = os.path.join(run.a.out, f"ncu_{name}.csv")
    run.command([ncu, "--clock-control", "none", "--metrics", "gpu__time_duration.sum", "--csv",
                 "--log-file", file, run.a.precast, "train", path, "--steps", "2", "--blame", "0",
                 "--out", os.path.join(run.work, "ncu"), "--device", "cuda"],
                limit=90, env={"PRECAST_CUDA_GRAPH": "0"})  # fmt: skip
    with open(file) as text:
        found = kernels(text.read())
    if not found:
        raise Failed(f"ncu wrote no kernels into {file}")
    lines = by_kernel(found)
    run.say("\n".join("      " + line for line in lines))
    return lines[0]


def pytorch_times(run, name):
    """Where PyTorch's time goes in its fastest mode."""
    file = os.path.join(run.a.out, f"torch_{name}.txt")
    run.command(bench(name, "--mode", "graphs", "--device", run.device, "--profile", file),
                limit=90, answer=True)  # fmt: skip
    return file


def choices(run):
    """Plans, and what was chosen by measuring, as one file."""
    found = glob.glob(os.path.join(run.work, "**", "*.plan"), recursive=True)
    cache = glob.glob(os.path.join(run.work, "cache", "*"))
    found += [p for p in cache if not os.path.basename(p).startswith("cubin")]
    if not found:
        raise Skipped("there are none")
    with tarfile.open(os.path.join(run.a.out, "choices.tar.gz"), "w:gz") as tar:
        for path in sorted(found):
            tar.add(path, arcname=os.path.relpath(path, run.work))
    return f"{len(found)} files"
