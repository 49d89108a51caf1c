"""Known architectures in small configurations: exported, compiled, and their gradients held against f64.

    python architectures.py PRECAST [--only GLOB] [--exporters ts,dynamo] [--out TABLE.md] [--seconds 300]

Each network has random weights from a fixed seed, its dropout is off. It is exported by PyTorch's
TorchScript exporter in training mode (opset 17) and by its torch.export exporter (opset 18, not optimised);
where the latter writes batch normalisation with fixed statistics, it is compared with a network whose
statistics are fixed. The loss is the mean squared difference from random targets. `precast grad` in f32
is compared with PyTorch in f64, parameter by parameter, by the relative L2 distance

    |g - w| / max(|w|, 1e-6 |all gradients|)

which may be 1e-5, or ten times what PyTorch's own f32 gradients have. A gradient below that floor is zero but for
rounding (a bias before a normalisation, say), and may be off by half a unit in f32 of all gradients, 2^-24. A ReLU whose operand is 0 but for rounding is on one side in f64 and on the other in
f32, and its gradients then differ by more than rounding, in PyTorch's f32 too; so a network that is `wrong`
is tried with the weights and data of up to three seeds, and what is said names the one that was right and
the distance of the one before. Verdicts: `right`; `wrong`; `refused` (an error with a code); `panic`; `exporter`
(PyTorch does not export it, or ONNX Runtime does not get PyTorch's outputs from the file either).

Every network runs in a process of its own. Needs requirements.txt, timm, torchvision, transformers, diffusers.
"""

import argparse
import collections
import fnmatch
import json
import os
import subprocess
import sys
import tempfile

SEEDS = 3
# Of all gradients: what is smaller is zero but for rounding.
FLOOR = 1e-6

HERE = os.path.dirname(os.path.abspath(__file__))


def run_one(name, exporter, precast, folder, seed):
    """What became of one network with weights of this seed, as a dict."""
    import logging
    import warnings

    import numpy as np
    import torch

    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    import architecture_list

    module, inputs = architecture_list.build(name, seed)
    module.train()
    norms = (torch.nn.modules.batchnorm._BatchNorm,)
    for m in module.modules():
        if isinstance(m, torch.nn.modules.dropout._DropoutNd):
            m.p = 0.0
        if hasattr(m, "drop_prob") and isinstance(m.drop_prob, float):
            m.drop_prob = 0.0
        if exporter == "dynamo" and isinstance(m, norms):
            m.eval()
            if m.running_mean is not None:
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.5)
    state = {k: v.clone() for k, v in module.state_dict().items()}

    def gradients(dtype):
        net = module.to(dtype)
        net.load_state_dict({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()})
        for p in net.parameters():
            p.grad = None
        args = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
        out = net(*args)
        generator = torch.Generator().manual_seed(1)
        target = torch.randn(out.shape, generator=generator, dtype=torch.float32)
        loss = ((out - target.to(dtype)) ** 2).mean()
        loss.backward()
        grads = {k: p.grad.detach().double().numpy() for k, p in net.named_parameters() if p.grad is not None}
        return out.detach(), target, float(loss), grads

    out64, target, loss64, want = gradients(torch.float64)
    _, _, _, own = gradients(torch.float32)
    module.to(torch.float32).load_state_dict(state)

    names = [f"in_{k}" for k in range(len(inputs))]
    model = os.path.join(folder, "model.onnx")
    try:
        if exporter == "ts":
            torch.onnx.export(
                module, tuple(inputs), model, dynamo=False, training=torch.onnx.TrainingMode.TRAINING,
                do_constant_folding=False, opset_version=17,
                input_names=names, output_names=["out"],
            )
        else:
            torch.onnx.export(
                module, tuple(inputs), model, dynamo=True, optimize=False, opset_version=18,
                input_names=names, output_names=["out"], external_data=False, verbose=False,
            )
    except Exception as e:
        return {"verdict": "exporter", "said": f"{type(e).__name__}: {str(e).splitlines()[0][:160] if str(e) else ''}"}
    from safetensors.numpy import save_file

    batch = out64.shape[0]
    data = {n: x.numpy() for n, x in zip(names, inputs)}
    data["target"] = target.numpy()
    save_file({k: np.ascontiguousarray(v) for k, v in data.items()}, os.path.join(folder, "data.safetensors"))
    listed = ", ".join(f'{n} = "{n}"' for n in names)
    recipe = f"""model = "model.onnx"
[data]
format = "safetensors"
file = "data.safetensors"
batch = {batch}
shuffle = false
inputs = {{ {listed} }}
targets = {{ target = "target" }}
[loss]
kind = "mse"
[optimizer]
kind = "sgd"
lr = 0.1
[train]
steps = 1
"""
    with open(os.path.join(folder, "recipe.toml"), "w") as file:
        file.write(recipe)
    done = subprocess.run(
        [precast, "grad", "recipe.toml", "-o", "grad.safetensors", "--policy", "f32"],
        cwd=folder, capture_output=True, text=True,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    if not os.path.exists(os.path.join(folder, "grad.safetensors")):
        verdict = "refused" if errors and done.returncode in (1, 2, 3, 4) else "panic"
        said = "; ".join(errors[:3]) if errors else done.stderr.strip()[:300]
        return {"verdict": verdict, "said": said, "stderr": done.stderr[-3000:]}
    from safetensors.numpy import load_file

    got = load_file(os.path.join(folder, "grad.safetensors"))
    total = np.sqrt(sum(float((w**2).sum()) for w in want.values()))

    def distance(g, w):
        return float(np.linalg.norm(g - w) / max(np.linalg.norm(w), FLOOR * total, 1e-300))

    worst, wrong, missing, all_got = (0.0, "", 0.0), [], [], 0.0
    # A tied parameter may have any of its names.
    tied = collections.defaultdict(list)
    for k, p in module.named_parameters(remove_duplicate=False):
        tied[id(p)].append(k)
    known = {k: [a for all_names in tied.values() if k in all_names for a in all_names] for k in want}
    for k, w in want.items():
        mine = next((got[f"grad.{a}"] for a in known[k] if f"grad.{a}" in got), None)
        if mine is None:
            # A parameter that the loss does not depend on has no gradient in a plan.
            if np.linalg.norm(w) > 1e-7 * total:
                missing.append(k)
            continue
        g = mine.astype(np.float64).reshape(w.shape)
        all_got += float(((g - w) ** 2).sum())
        e, pytorch = distance(g, w), distance(own[k], w)
        rounding = 2.0**-24 / FLOOR if np.linalg.norm(w) < FLOOR * total else 0.0
        if not e <= max(1e-5, 10 * pytorch, rounding):
            wrong.append((e, k, pytorch))
        if e > worst[0] or e != e:
            worst = (e, k, pytorch)
    own_total = np.sqrt(sum(float(((own[k] - w) ** 2).sum()) for k, w in want.items())) / total
    result = {
        "loss": float(got["loss"].reshape(-1)[0]), "loss64": loss64,
        "error": float(np.sqrt(all_got) / total), "pytorch": float(own_total),
        "worst": worst, "parameters": len(want), "wrong": wrong[:5], "missing": missing[:5],
        "extra": sorted(
            k[5:] for k in got
            if k.startswith("grad.") and not any(k[5:] in names for names in known.values())
        )[:5],
    }
    result["verdict"] = "wrong" if wrong or missing or result["error"] != result["error"] else "right"
    if result["verdict"] == "wrong":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            feeds = {i.name: data[i.name] for i in session.get_inputs()}
            (ort,) = session.run(["out"], feeds)
            scale = float(np.abs(out64.numpy()).max())
            if not np.abs(ort - out64.numpy()).max() <= 1e-3 * scale:
                result["verdict"] = "exporter"
                result["said"] = "ONNX Runtime's outputs of the file are not PyTorch's"
        except Exception as e:
            result["said"] = f"ONNX Runtime: {str(e)[:160]}"
        if result["verdict"] == "wrong":
            result.setdefault("said", "; ".join(f"{k} {e:.1e} (PyTorch {p:.1e})" for e, k, p in wrong[:2]))
            if missing:
                result["said"] += f"; no gradient: {', '.join(missing[:3])}"
    return result


def child(args):
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or temporary
        os.makedirs(folder, exist_ok=True)
        for seed in range(SEEDS):
            result = run_one(args.only, args.exporters, os.path.abspath(args.precast), folder, seed)
            if result["verdict"] != "wrong":
                break
            worse = result
        if result["verdict"] == "right" and seed > 0:
            result["said"] = f"seed {seed}; seed {seed - 1}: {worse['error']:.1e}, PyTorch {worse['pytorch']:.1e}"
    print("RESULT " + json.dumps(result))


def table(rows, out):
    counts = collections.Counter((e, r["verdict"]) for _, e, r in rows)
    lines = []
    for e in dict.fromkeys(e for _, e, _ in rows):
        lines.append(f"{e}: " + ", ".join(f"{n} {v}" for (x, v), n in sorted(counts.items()) if x == e))
    print("\n".join(lines))
    if not out:
        return
    with open(out, "w") as file:
        file.write("\n".join(lines) + "\n\n")
        file.write("| network | exporter | verdict | distance of all gradients | PyTorch f32's | worst parameter's | said |\n")
        file.write("| --- | --- | --- | --- | --- | --- | --- |\n")
        for name, e, r in rows:
            numbers = [f"{r[k]:.1e}" if k in r else "" for k in ("error", "pytorch")]
            worst = f"{r['worst'][0]:.1e}" if "worst" in r else ""
            said = r.get("said", "").replace("|", "\\|")
            file.write(f"| `{name}` | {e} | {r['verdict']} | {numbers[0]} | {numbers[1]} | {worst} | {said} |\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("precast")
    parser.add_argument("--only", default="*")
    parser.add_argument("--exporters", default="ts,dynamo")
    parser.add_argument("--out")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--child", action="store_true", help="one network, here")
    parser.add_argument("--join", nargs="*", default=[], metavar="JSONL", help="no run: the table of these, later ones win")
    parser.add_argument("--keep", help="with --child: a folder for its files")
    args = parser.parse_args()
    sys.path.insert(0, HERE)
    if args.child:
        child(args)
        return 0
    import architecture_list

    if args.join:
        found = {}
        for path in args.join:
            with open(path) as file:
                for line in file:
                    name, exporter, result = json.loads(line)
                    found[name, exporter] = result
        order = {n: i for i, n in enumerate(architecture_list.names())}
        keys = sorted((k for k in found if k[0] in order), key=lambda k: (order[k[0]], k[1] != "ts"))
        table([(n, e, found[n, e]) for n, e in keys], args.out)
        return 0
    rows = []
    log = open(f"{args.out}.jsonl", "a") if args.out else None
    for name in architecture_list.names():
        if not fnmatch.fnmatch(name, args.only):
            continue
        for exporter in args.exporters.split(","):
            command = [sys.executable, os.path.abspath(__file__), args.precast, "--only", name,
                       "--exporters", exporter, "--child"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=args.seconds)
                found = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
                if found:
                    result = json.loads(found[-1][7:])
                else:
                    tail = (done.stderr.strip().splitlines() or ["nothing"])[-1]
                    result = {"verdict": "not run", "said": tail[:200]}
            except subprocess.TimeoutExpired:
                result = {"verdict": "not run", "said": f"{args.seconds} s were not enough"}
            rows.append((name, exporter, result))
            if log:
                print(json.dumps(rows[-1]), file=log, flush=True)
            shown = f"{result.get('error', float('nan')):.1e} (PyTorch {result.get('pytorch', float('nan')):.1e})"
            print(f"{result['verdict']:9} {name} {exporter} {shown} {result.get('said', '')[:200]}", flush=True)
    table(rows, args.out)
    bad = sum(r["verdict"] in ("wrong", "panic") for _, _, r in rows)
    right = sum(r["verdict"] == "right" for _, _, r in rows)
    print(f"{right} passed, {bad} failed, {len(rows) - right - bad} skipped")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
