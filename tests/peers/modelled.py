"""Compares policies on the cost model of a described target, for several networks.

    python tests/peers/modelled.py --precast target/release/precast --target sm_90 [--models FOLDER]

Nothing is run: `precast compare` compiles every network under every policy and prices what it made.
All policies have the same kernels and the same description. Networks that the repository holds are
always compared; those of FOLDER (ONNX graphs exported in training mode, without weights) where they
are there, and what is missing is named. Prints a table in Markdown; --json writes all rows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
SGD = {"kind": "sgd", "momentum": 0.9, "lr": 0.1}
ADAMW = {"kind": "adamw", "lr": 0.001}
CLASSES = {"kind": "cross_entropy", "prediction": "logits", "target": "targets"}
# Name, file, whether the repository holds it, dims, optimizer, loss.
NETWORKS = [
    ("MLP 784-512-10, batch 64", "tests/fixtures/mlp_mnist/model.onnx", True,
     {"batch": 64}, SGD, CLASSES),
    ("fixture CNN, batch 16", "tests/fixtures/cifar_cnn/model.onnx", True,
     {"batch": 16}, SGD, CLASSES),
    ("fixture GPT, 4×32 tokens", "tests/fixtures/tiny_gpt/model.onnx", True,
     {"batch": 4, "seq": 32}, ADAMW, CLASSES),
    ("CIFAR CNN, width 32, batch 64", "tests/models/cifar_cnn_w32.ts.op17.train.onnx", True,
     {"batch": 64}, SGD, CLASSES),
    ("GPT 4×256, 8×128 tokens", "tests/models/gpt_4x256.ts.op17.train.onnx", True,
     {"batch": 8, "seq": 128}, ADAMW, CLASSES),
    ("GPT-2 small, 1×1024 tokens", "gpt2_small_hf.dynamo.op18.train.onnx", False,
     {"s23": 1, "s27": 1024}, ADAMW, CLASSES),
    ("BERT base, 16×512 tokens", "bert_base_hf.ts.op17.train.onnx", False,
     {"batch": 16, "seq": 512}, ADAMW, CLASSES),
    ("ViT-B/16, batch 64", "vit_b_16_timm.ts.op17.train.onnx", False,
     {"batch": 64}, ADAMW, CLASSES),
    ("ResNet-50, batch 64", "resnet50.ts.op17.train.onnx", False,
     {"batch": 64}, SGD, CLASSES),
    ("YOLO11n, batch 16, squared error of its boxes", "yolo11n_det_train.ts.op17.train.onnx",
     False, {"batch": 16}, SGD, {"kind": "mse", "prediction": "1153", "target": "targets"}),
]  # fmt: skip


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{k}" = {toml(v)}' for k, v in value.items()) + " }"
    return json.dumps(value)


def recipe(path, dims, optimizer, loss, target):
    tables = {
        "weights": {"init": "default"},
        "data": {"dims": dims, "targets": {"targets": "targets"}},
        "loss": loss,
        "optimizer": optimizer,
        "precision": {"policy": "auto"},
        "train": {"steps": 100},
        "target": {"device": target},
    }
    lines = [f"model = {json.dumps(os.path.abspath(path))}"]
    for name, table in tables.items():
        lines += ["", f"[{name}]"] + [f"{k} = {toml(v)}" for k, v in table.items()]
    return "\n".join(lines) + "\n"


def size(n):
    for unit in ["B", "KiB", "MiB", "GiB"]:
        if n < 1024 or unit == "GiB":
            return f"{n:.3g} {unit}" if n < 1000 else f"{n:.0f} {unit}"
        n /= 1024


def duration(ns):
    return f"{ns / 1e6:.3g} ms" if ns >= 1e6 else f"{ns / 1e3:.3g} µs"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precast", default=os.path.join(ROOT, "target/release/precast"))
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--models", metavar="FOLDER", help="graphs that the repository does not hold")
    parser.add_argument("--policies", default="auto,torch-autocast-bf16,torch-autocast,"
                        "tf-grappler-bf16,tf-grappler,f32")
    parser.add_argument("--json", metavar="FILE")
    a = parser.parse_args()
    everything, missing, failed = {}, [], []
    print("| model | policy | casts | cast bytes | kernels | bytes moved | predicted | against `auto` "
          "| over its bound | memory |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, file, held, dims, optimizer, loss in NETWORKS:
        path = os.path.join(ROOT if held else a.models or "", file)
        if not held and (a.models is None or not os.path.exists(path)):
            missing.append(name)
            continue
        with tempfile.TemporaryDirectory() as folder:
            text = os.path.join(folder, "recipe.toml")
            with open(text, "w") as f:
                f.write(recipe(path, dims, optimizer, loss, a.target))
            command = [a.precast, "--json", "compare", text]
            command += [x for p in a.policies.split(",") for x in ("--only", p)]
            begin = time.time()
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            failed.append(f"{name}: {(done.stdout + done.stderr).strip()}")
            continue
        rows = json.loads(done.stdout)["rows"]
        everything[name] = {"seconds": time.time() - begin, "rows": rows}
        best = next((r["predicted_ns"] for r in rows if r["policy"] == "auto"), None)
        for i, r in enumerate(rows):
            ratio = f"{r['predicted_ns'] / best:.2f}" if best and r["policy"] != "auto" else ""
            gap = f"{r['predicted_ns'] / r['bound_ns'] - 1:.1%}" if r.get("bound_ns") else ""
            print(f"| {name if i == 0 else ''} | `{r['policy']}` | {r['casts']} "
                  f"| {size(r['cast_bytes'])} | {r['kernels']} | {size(r['moved_bytes'])} "
                  f"| {duration(r['predicted_ns'])} | {ratio} | {gap} | {size(r['peak_bytes'])} |",
                  flush=True)  # fmt: skip
    if a.json:
        with open(a.json, "w") as f:
            json.dump(everything, f, indent=1)
    for name in missing:
        print(f"\nnot compared, its graph is not there (--models): {name}")
    for line in failed:
        print(f"\nFAILED {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
