"""What the finite check costs a step: recipes over the fixtures with `on_nonfinite = "ignore"`, which
applies every update unseen, beside "stop", in turns in one run.

    python tests/peers/finite_check.py PRECAST [ROUNDS] > table.md

Each round trains every variant once; of its steps the median counts, of the rounds the median of the
ratios. Two variants are the same recipe, so that the table shows what the machine's noise is.
"""
import json, os, statistics, subprocess, sys, tempfile

PRECAST, ROUNDS = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 15
FIXTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures")
MODELS = {"mlp_mnist": ("x", 120), "cifar_cnn": ("x", 40), "tiny_gpt": ("input_ids", 40)}
VARIANTS = {"ignore": "ignore", "ignore again": "ignore", "stop": "stop"}


def seconds(model, policy, accumulate, variant, folder):
    name, steps = MODELS[model]
    root = os.path.abspath(os.path.join(FIXTURES, model))
    recipe = os.path.join(folder, "recipe.toml")
    with open(recipe, "w") as f:
        f.write(f'model = "{root}/model.onnx"\n[data]\nformat = "safetensors"\nfile = "{root}/batch.safetensors"\n'
                f'inputs = {{ {name} = "in.{name}" }}\ntargets = {{ targets = "tgt.targets" }}\n'
                f'[loss]\nkind = "cross_entropy"\nprediction = "logits"\n[optimizer]\nkind = "adamw"\nlr = 1e-4\n'
                f'[precision]\npolicy = "{policy}"\n[train]\nsteps = {steps}\naccumulate = {accumulate}\n'
                f'on_nonfinite = "{VARIANTS[variant]}"\n')
    log = os.path.join(folder, "log")
    args = [PRECAST, "train", recipe, "--log", log, "--out", os.path.join(folder, "out"), "--threads", "1"]
    subprocess.run(args, check=True, capture_output=True)
    with open(log) as f:
        times = [json.loads(line)["seconds"] for line in f]
    return statistics.median(times[5:])


print("| model | policy | batches a step | ms a step | same recipe again | with the check |\n| --- | --- | --- | --- | --- | --- |")
for model in MODELS:
    for policy, accumulate in [("f32", 1), ("f32", 2), ("bf16", 1)]:
        base, ratios = [], {v: [] for v in VARIANTS}
        with tempfile.TemporaryDirectory() as folder:
            for i in range(ROUNDS):
                order = list(VARIANTS)[i % 3:] + list(VARIANTS)[:i % 3]
                got = {v: seconds(model, policy, accumulate, v, folder) for v in order}
                base.append(got["ignore"])
                for v in VARIANTS:
                    ratios[v].append(got[v] / got["ignore"])
        m = {v: statistics.median(r) for v, r in ratios.items()}
        print(f"| {model} | {policy} | {accumulate} | {statistics.median(base) * 1e3:.3f} | {m['ignore again']:.3f} | {m['stop']:.3f} |", flush=True)
