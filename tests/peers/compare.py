"""Times Precast and PyTorch side by side, alternately, on this machine, and prints a table.

    python tests/peers/compare.py --precast target/release/precast --json out.json
    python tests/peers/compare.py --torch-only

For every network, thread count and precision, rounds of PyTorch and Precast take turns, each in a
fresh process; the figure is the median over the steps of all rounds, warm-up left out, and the
ratio is Precast's median over PyTorch's (below 1: Precast is faster). Both train the same graph
from the same weights on the same batch, and their first losses must agree. `auto` of Precast is
set against PyTorch in f32. PyTorch runs twice for the GPT: the operations of the exported graph,
and its own fused attention and GELU ("fused"); the ratio is to the faster of the two.

With --processor the figures are seconds of processor time, of all threads, from the difference between
a run of all steps and one of the warm-up alone: what is left to compare where other programs run.

Needs only the standard library here; the PyTorch half needs requirements.txt.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))


class Failed(Exception):
    """A command of either side that exited with an error or wrote something unexpected."""


def run(command, env=None):
    """Runs a command; returns its stdout, its wall and processor seconds and its peak resident MB (1e6 bytes)."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **(env or {})})
        # wait4 gives the resources of this child alone; getrusage would give the largest of all.
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        out.seek(0), err.seek(0)
        stdout, stderr = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    if child.returncode != 0:
        tail = "\n".join((stdout + stderr).strip().splitlines()[-15:])
        raise Failed(f"{' '.join(command)}\nexited with {child.returncode}:\n{tail}")
    return stdout, (seconds, usage.ru_utime + usage.ru_stime), usage.ru_maxrss * 1024 / 1e6


def measured(once, a):
    """A round: `once(steps)` gives what a process found and its seconds of processor time."""
    found, processor = once(a.steps)
    if a.processor:
        found["seconds"] = [(processor - once(0)[1]) / a.steps]
    return found


def toml(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def write_recipe(folder, info, policy, steps):
    tables = {
        "weights": {"file": "weights.safetensors"},
        "data": {
            "format": "safetensors",
            "file": "batch.safetensors",
            "inputs": {info["input"]: "in." + info["input"]},
            "targets": {"targets": "tgt.targets"},
        },
        "loss": {"kind": "cross_entropy", "prediction": "logits", "target": "targets"},
        "optimizer": info["optimizer"],
        "precision": {"policy": policy},
        "train": {"steps": steps, "seed": 0},
        "target": {"device": "cpu"},
    }
    lines = ['model = "model.onnx"']
    for name, table in tables.items():
        lines += ["", f"[{name}]"] + [f"{k} = {toml(v)}" for k, v in table.items()]
    path = os.path.join(folder, f"{policy}.toml")
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    return path


def torch_round(python, model, precision, threads, a, fused):
    return measured(lambda n: torch_run(python, model, precision, threads, a, fused, n), a)


def torch_run(python, model, precision, threads, a, fused, steps):
    command = [python, "-W", "ignore", os.path.join(HERE, "torch_step.py"), model]
    command += ["--precision", precision, "--threads", str(threads)]
    command += ["--steps", str(steps), "--warmup", str(a.warmup)] + ["--fused"] * fused
    stdout, (_, processor), _ = run(command, {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)})
    r = json.loads(stdout.strip().splitlines()[-1])
    return {"seconds": r["seconds"], "losses": r["losses"], "rss": r["peak_rss_mb"]}, processor


def precast_round(binary, folder, policy, threads, a):
    return measured(lambda n: precast_run(binary, folder, policy, threads, a, n), a)


def precast_run(binary, folder, policy, threads, a, timed):
    recipe = os.path.join(folder, f"{policy}.toml")
    log = os.path.join(folder, "log.jsonl")
    if os.path.exists(log):
        os.remove(log)
    steps = a.warmup + timed
    command = [binary, "train", recipe, "--steps", str(steps), "--log", log]
    command += ["--out", os.path.join(folder, "out")]
    command += ["--threads", str(threads)]
    _, (_, processor), rss = run(command)
    with open(log) as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    rows = [r for r in rows if "step" in r and "seconds" in r]
    if len(rows) != steps:
        raise Failed(f"{log} has {len(rows)} steps instead of {steps}")
    return {"seconds": [r["seconds"] for r in rows[a.warmup :]],
            "losses": [r["loss"] for r in rows], "rss": rss}, processor  # fmt: skip


def summary(rounds):
    seconds = [s for r in rounds for s in r["seconds"]]
    return {
        "median_ms": 1e3 * statistics.median(seconds),
        "min_ms": 1e3 * min(seconds),
        "round_medians_ms": [1e3 * statistics.median(r["seconds"]) for r in rounds],
        "steps": len(seconds),
        "rss_mb": max(r["rss"] for r in rounds),
        "first_loss": rounds[0]["losses"][0],
        "last_loss": rounds[0]["losses"][-1],
    }


def compare(python, a, model, folder, threads, policy):
    precision = "f32" if policy == "auto" else policy
    variants = [False, True] if model.startswith("gpt") else [False]
    sides = {("torch fused" if v else "torch"): [] for v in variants}
    if not a.torch_only:
        sides["precast"] = []
    for _ in range(a.rounds):
        for v in variants:
            side = "torch fused" if v else "torch"
            sides[side].append(torch_round(python, model, precision, threads, a, v))
        if not a.torch_only:
            sides["precast"].append(precast_round(a.precast, folder, policy, threads, a))
    row = {"model": model, "threads": threads, "policy": policy}
    row.update({name: summary(rounds) for name, rounds in sides.items()})
    if not a.torch_only:
        best = min(row[s]["median_ms"] for s in sides if s != "precast")
        row["ratio"] = row["precast"]["median_ms"] / best
        expected, got = row["torch"]["first_loss"], row["precast"]["first_loss"]
        tolerance = 1e-4 if precision == "f32" else 2e-2
        row["losses_agree"] = abs(got - expected) <= tolerance * abs(expected)
    return row


def compile_seconds(a, folder, policy):
    """Wall time of `precast compile`, start of the process included: the median of three."""
    command = [a.precast, "compile", os.path.join(folder, f"{policy}.toml")]
    command += ["-o", os.path.join(folder, f"{policy}.plan")]
    return statistics.median(run(command)[1][0] for _ in range(3))


def table(rows, compiles):
    lines = [
        "| model | threads | policy | PyTorch ms | PyTorch fused ms | Precast ms | ratio "
        "| MB PyTorch / Precast | first loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        def ms(side):
            return f"{r[side]['median_ms']:.1f}" if side in r else "–"  # noqa: B023

        rss = f"{r['torch']['rss_mb']:.0f} / " + (f"{r['precast']['rss_mb']:.0f}" if "precast" in r else "–")
        ratio = f"{r['ratio']:.2f}" if "ratio" in r else "–"
        loss = f"{r['torch']['first_loss']:.5f}"
        if "precast" in r:
            loss += f" / {r['precast']['first_loss']:.5f}" + ("" if r["losses_agree"] else " DIFFER")
        lines.append(
            f"| {r['model']} | {r['threads']} | {r['policy']} | {ms('torch')} | {ms('torch fused')} "
            f"| {ms('precast')} | {ratio} | {rss} | {loss} |"
        )
    lines += [f"compile {model}, {policy}: {s:.2f} s" for (model, policy), s in compiles.items()]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precast", default=os.path.join(HERE, "../../target/release/precast"))
    parser.add_argument("--python", default=sys.executable, help="the Python that has torch")
    parser.add_argument("--torch-only", action="store_true")
    parser.add_argument("--models", default="cifar_cnn_w32,gpt_4x256")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--policies", default="f32,bf16", help="of f32, bf16, auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps a round")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--processor", action="store_true", help="processor time, not wall time")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--keep", metavar="DIR", help="leave the recipes, data and logs here")
    a = parser.parse_args()
    if not a.torch_only and not os.access(a.precast, os.X_OK):
        parser.error(f"{a.precast} is not there: cargo build --release, or --precast, or --torch-only")
    rows, compiles, failures = [], {}, []
    root = a.keep or tempfile.mkdtemp(prefix="precast-peers-")
    try:
        for model in a.models.split(","):
            folder = os.path.join(root, model)
            os.makedirs(folder, exist_ok=True)
            command = [a.python, "-W", "ignore", os.path.join(HERE, "torch_step.py"), model]
            info = json.loads(run(command + ["--dump", folder])[0].strip().splitlines()[-1])
            shutil.copy(info["onnx"], os.path.join(folder, "model.onnx"))
            for policy in a.policies.split(","):
                write_recipe(folder, info, policy, a.warmup + a.steps)
                try:
                    if not a.torch_only:
                        compiles[model, policy] = compile_seconds(a, folder, policy)
                    for threads in (int(t) for t in a.threads.split(",")):
                        rows.append(compare(a.python, a, model, folder, threads, policy))
                        print(table(rows[-1:], {}).splitlines()[-1], file=sys.stderr, flush=True)
                except Failed as failure:
                    failures.append(f"{model}, {policy}: {failure}")
    finally:
        if not a.keep:
            shutil.rmtree(root, ignore_errors=True)
    print(table(rows, compiles))
    if a.json:
        named = {f"{m} {p}": s for (m, p), s in compiles.items()}
        with open(a.json, "w") as file:
            json.dump({"rows": rows, "compile_seconds": named, "failures": failures}, file, indent=1)
    for failure in failures:
        print("\nFAILED " + failure)
    disagree = [r for r in rows if r.get("losses_agree") is False]
    return 1 if failures or disagree else 0


if __name__ == "__main__":
    sys.exit(main())
