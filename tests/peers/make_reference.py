"""Writes tests/fixtures/{grad_scaler.json,grad_scaler.onnx,optimizers.json} with PyTorch on the CPU.

    python make_reference.py

`grad_scaler.json`: what torch.amp.GradScaler does, step by step, with a network of one linear
layer. `optimizers.json`: what torch.optim's SGD, Adam and AdamW do to fixed gradients in f32 and
f64, and learning-rate schedules. Both files describe their own schema.
"""

import json
import math
import os

import numpy as np
import onnx
import torch
from torch import nn
from torch.onnx import TrainingMode

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "fixtures")
ROWS, INPUTS, OUTPUTS = 3, 4, 2


def number(value, dtype):
    """The shortest decimal that reads back as the same f32 or f64; JSON has no inf and nan."""
    if not math.isfinite(value):
        return '"nan"' if math.isnan(value) else '"inf"' if value > 0 else '"-inf"'
    return str(np.float32(value)) if dtype == torch.float32 else repr(float(value))


class Raw(str):
    """JSON text to be written as it is."""


def raw(tensor):
    def text(value):
        if isinstance(value, list):
            return "[" + ", ".join(text(v) for v in value) + "]"
        return number(value, tensor.dtype)

    return Raw(text(tensor.detach().tolist()))


def write(value, depth=0):
    """JSON with one line a leaf object: long enough to read, short enough to diff."""
    pad = " " * (depth + 1)
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict) and (depth < 3 or any(isinstance(v, list) for v in value.values())):
        body = [f"{pad}{json.dumps(k)}: {write(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(body) + "\n" + " " * depth + "}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {write(v, 9)}" for k, v in value.items()) + "}"
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        return "[\n" + ",\n".join(pad + write(v, depth + 1) for v in value) + "\n" + " " * depth + "]"
    if isinstance(value, list):
        return "[" + ", ".join(write(v, 9) for v in value) + "]"
    return json.dumps(value)


def save(name, value):
    with open(os.path.join(OUT, name), "w") as file:
        file.write(write(value) + "\n")


# --- loss scaling ---------------------------------------------------------------------------


def linear():
    net = nn.Linear(INPUTS, OUTPUTS)
    with torch.no_grad():
        values = torch.arange(INPUTS * OUTPUTS + OUTPUTS, dtype=torch.float32)
        values = (values * 7 % 11 - 5) / 16
        net.weight.copy_(values[: INPUTS * OUTPUTS].view(OUTPUTS, INPUTS))
        net.bias.copy_(values[INPUTS * OUTPUTS :])
    return net


def batches(count):
    g = torch.Generator().manual_seed(7)
    out = []
    for _ in range(count):
        x = torch.randint(-16, 17, (ROWS, INPUTS), generator=g).float() / 16
        t = torch.randint(-16, 17, (ROWS, OUTPUTS), generator=g).float() / 16
        out.append((x, t))
    return out


def optimizer(words, parameters):
    words = dict(words)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kind[words.pop("kind")](parameters, **words)


def state_of(opt, parameter):
    state = opt.state.get(parameter, {})
    names = {"momentum_buffer": "momentum", "exp_avg": "m", "exp_avg_sq": "v"}
    return {names[k]: raw(v) for k, v in state.items() if k in names and v is not None}


def step_count(opt, parameter):
    state = opt.state.get(parameter, {})
    return int(state["step"].item()) if "step" in state else None


def transcript(events, optimizer_words, scaler_words, clip=None, accumulate=1, precision="f32"):
    """One run. `events` has one letter a micro-batch: "." finite, "i" one input is +inf,
    "n" one input is NaN."""
    net = linear().train()
    opt = optimizer(optimizer_words, net.parameters())
    scaler = torch.amp.GradScaler("cpu", **scaler_words)
    scaler.scale(torch.zeros(()))  # makes the scale tensor, so that it can be read before a step
    data, steps = batches(len(events)), []
    for first in range(0, len(events), accumulate):
        opt.zero_grad(set_to_none=True)
        scale, micro = scaler.get_scale(), []
        for i in range(first, first + accumulate):
            x, t = data[i]
            x = x.clone()
            if events[i] != ".":
                x[1, 2] = {"i": math.inf, "n": math.nan}[events[i]]
            with torch.autocast("cpu", dtype=torch.float16, enabled=precision == "f16"):
                y = net(x)
            loss = nn.functional.mse_loss(y.float(), t)
            scaler.scale(loss / accumulate).backward()
            micro.append({"x": raw(x), "t": raw(t), "loss": raw(loss)})
        before = net.weight.detach().clone()
        scaler.unscale_(opt)
        gradients = {"weight": raw(net.weight.grad), "bias": raw(net.bias.grad)}
        norm = nn.utils.clip_grad_norm_(net.parameters(), math.inf if clip is None else clip)
        state = scaler._per_optimizer_states[id(opt)]
        found = any(v.item() for v in state["found_inf_per_device"].values())
        scaler.step(opt)
        scaler.update()
        assert found == torch.equal(before, net.weight), "a step that is not skipped moves weights"
        steps.append({
            "batches": micro,
            "scale": Raw(number(scale, torch.float32)),
            "skipped": found,
            "grad": gradients,
            "grad_norm": raw(norm),
            "scale_after": Raw(number(scaler.get_scale(), torch.float32)),
            "growth_tracker_after": scaler._get_growth_tracker(),
            "weight_after": raw(net.weight),
            "bias_after": raw(net.bias),
            "optimizer_steps_after": step_count(opt, net.weight),
            "weight_state_after": state_of(opt, net.weight),
            "bias_state_after": state_of(opt, net.bias),
        })  # fmt: skip
    words = {"init": 2.0**16, "growth": 2.0, "backoff": 0.5, "interval": 2000}
    long = {"init": "init_scale", "growth": "growth_factor", "backoff": "backoff_factor",
            "interval": "growth_interval"}  # fmt: skip
    words.update({k: scaler_words[v] for k, v in long.items() if v in scaler_words})
    return {
        "events": events, "precision": precision, "optimizer": optimizer_words, "loss_scale": words,
        "accumulate": accumulate, "clip_norm": clip, "steps": steps,
    }  # fmt: skip


SGD = {"kind": "sgd", "lr": 0.25, "momentum": 0.5}
ADAMW = {"kind": "adamw", "lr": 0.0625, "betas": [0.75, 0.9375], "eps": 1e-6, "weight_decay": 0.125}


def scaler_cases():
    def words(init=16.0, interval=3, growth=2.0, backoff=0.5):
        return {"init_scale": init, "growth_factor": growth, "backoff_factor": backoff,
                "growth_interval": interval}  # fmt: skip

    mixed = "...i.n..i...."
    return {
        "sgd": transcript(mixed, SGD, words()),
        "adamw": transcript(mixed, ADAMW, words()),
        "first_step_overflows": transcript("i...", ADAMW, words()),
        "every_step_grows": transcript(".....", SGD, words(interval=1)),
        "below_one": transcript("iii....i...", SGD, words(init=0.5, interval=2)),
        "growth_to_inf_is_refused": transcript("......", SGD, words(init=2.0**126, interval=2)),
        "odd_factors": transcript("..i..i.....", SGD, words(init=3.0, interval=2, growth=1.7, backoff=0.3)),
        "clip": transcript("..i...", SGD, words(), clip=0.25),
        "clip_adamw": transcript(".i....", ADAMW, words(), clip=0.25),
        "accumulate": transcript("..i....n......", SGD, words(interval=2), accumulate=2),
        "accumulate_clip": transcript("...i......", ADAMW, words(interval=2), clip=0.25, accumulate=2),
        "f16_overflow_from_the_scale": transcript(
            "........", SGD, words(init=2.0**20, interval=2), precision="f16"
        ),
    }


SCALER_SCHEMA = [
    "Made by tests/peers/make_reference.py with torch.amp.GradScaler on the CPU.",
    "Network: grad_scaler.onnx, y = x weight^T + bias, with the starting values in it; x f32 [3, 4], y [3, 2].",
    "Loss: mean((y - t)^2) over all elements; with accumulation the mean of the micro-batches' losses.",
    "A number that is not finite is written as a string: \"inf\", \"-inf\", \"nan\".",
    "Numbers are f32, written so that they read back exactly. Expect differences of some units in the last place"
    " in loss, grad and what follows from them; scale, skipped, growth_tracker_after and optimizer_steps_after are exact.",
    "events: one letter a micro-batch: '.' finite, 'i' one input element is +inf, 'n' one is NaN.",
    "precision: f32, or f16 = PyTorch's f16 autocast around the layer (f16 operands and output, f32 master"
    " weights and loss); there the scale itself makes the gradient overflow.",
    "loss_scale: init, growth, backoff, interval. optimizer, accumulate, clip_norm: as in a recipe.",
    "A step: batches (x, t and the unscaled loss of every micro-batch); scale: the loss scale this step used;"
    " skipped: a gradient was not finite, so nothing was updated; grad: unscaled gradients before clipping"
    " (not finite where skipped); grad_norm: their global L2 norm; then the state after the step.",
    "optimizer_steps_after: the step count that bias correction reads (null for SGD). weight_state_after,"
    " bias_state_after: momentum (SGD) or m and v (Adam's exp_avg, exp_avg_sq); empty before the first update.",
]


def export_linear(path):
    torch.onnx.export(
        linear().train(), (torch.zeros(ROWS, INPUTS),), path, dynamo=False,
        training=TrainingMode.TRAINING, do_constant_folding=False, opset_version=17,
        input_names=["x"], output_names=["y"],
        dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
    )  # fmt: skip
    onnx.checker.check_model(onnx.load(path))


# --- optimizers -----------------------------------------------------------------------------


def run_optimizer(words, clip, gradients, start, dtype):
    parameters = [nn.Parameter(torch.tensor(v, dtype=dtype)) for v in start]
    opt = optimizer(words, parameters)
    steps = []
    for row in gradients:
        for p, g in zip(parameters, row):
            p.grad = torch.tensor(g, dtype=dtype)
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
        opt.step()
        steps.append({
            "grad_norm": raw(norm),
            "params": Raw("[" + ", ".join(raw(p) for p in parameters) + "]"),
            **{k: Raw("[" + ", ".join(state_of(opt, p)[k] for p in parameters) + "]")
               for k in state_of(opt, parameters[0])},
        })  # fmt: skip
    return steps


def optimizers():
    start = [[[0.5, -1.25, 0.75], [2.0, -0.03125, 0.0]], [0.125, -0.5, 1.0]]
    g = torch.Generator().manual_seed(3)
    gradients = []
    for step in range(5):
        size = [1.0, 0.001, 8.0, 0.25, 1.0][step]
        row = [torch.randint(-32, 33, s, generator=g) / 32 * size for s in ((2, 3), (3,))]
        gradients.append([r.tolist() for r in row])
    gradients[3][1] = [0.0, 0.0, 0.0]  # a parameter whose gradient is zero still moves
    adam = {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8}
    kinds = {
        "sgd": {"kind": "sgd", "lr": 0.1},
        "sgd_decay": {"kind": "sgd", "lr": 0.1, "weight_decay": 0.05},
        "sgd_momentum": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
        "sgd_momentum_decay": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.05},
        "sgd_nesterov": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
        "sgd_nesterov_decay": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
        "adam": {"kind": "adam", **adam},
        "adam_decay": {"kind": "adam", **adam, "weight_decay": 0.05},
        "adam_large_eps": {"kind": "adam", **adam, "eps": 0.1, "betas": [0.5, 0.75]},
        "adamw": {"kind": "adamw", **adam, "weight_decay": 0.01},
        "adamw_large_decay": {"kind": "adamw", **adam, "weight_decay": 0.5},
    }
    cases = {}
    for name, words in kinds.items():
        for clip in (None, 0.5):
            cases[name + ("" if clip is None else "_clip")] = {
                "optimizer": words,
                "clip_norm": clip,
                "f64": run_optimizer(words, clip, gradients, start, torch.float64),
                "f32": run_optimizer(words, clip, gradients, start, torch.float32),
            }
    return {
        "about": [
            "Made by tests/peers/make_reference.py with torch.optim on the CPU.",
            "start: the two parameters (shapes [2, 3] and [3]). gradients: step, then parameter.",
            "clip_norm: torch.nn.utils.clip_grad_norm_ before the step: every gradient times"
            " min(1, clip / (norm + 1e-6)); null = none. grad_norm is the norm before clipping.",
            "f64, f32: one object a step, in that arithmetic: params after the step, and per parameter the state"
            " after it: momentum (SGD), m and v (Adam's exp_avg and exp_avg_sq).",
            "schedules: the learning rate of step 0, 1, ...; formula beside it.",
        ],
        "start": [Raw(json.dumps(s)) for s in start],
        "gradients": Raw(json.dumps(gradients)),
        "cases": cases,
        "schedules": schedules(),
    }


# --- learning-rate schedules ----------------------------------------------------------------


def rate(kind, step, lr, warmup, steps, floor):
    if step < warmup:
        return lr * (step + 1) / warmup
    if kind == "constant":
        return lr
    part = (step - warmup) / (steps - warmup)
    if kind == "linear":
        return lr + (floor - lr) * part
    return floor + (lr - floor) * 0.5 * (1 + math.cos(math.pi * part))


def torch_rates(kind, lr, warmup, steps, floor):
    from torch.optim import lr_scheduler as s

    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    rest = max(steps - warmup, 1)
    after = {
        "constant": lambda: s.ConstantLR(opt, factor=1.0, total_iters=1),
        "linear": lambda: s.LinearLR(opt, start_factor=1.0, end_factor=floor / lr, total_iters=rest),
        "cosine": lambda: s.CosineAnnealingLR(opt, T_max=rest, eta_min=floor),
    }[kind]
    if warmup > 1:
        up = s.LinearLR(opt, start_factor=1 / warmup, end_factor=1.0, total_iters=warmup - 1)
        schedule = s.SequentialLR(opt, [up, after()], milestones=[warmup])
    else:
        schedule = after()
    out = []
    for _ in range(steps):
        out.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    return out


def schedules():
    rows = []
    for kind, warmup, floor in (
        ("constant", 0, 0.0), ("constant", 4, 0.0), ("linear", 0, 0.0), ("linear", 3, 0.0),
        ("linear", 3, 0.01), ("cosine", 0, 0.0), ("cosine", 3, 0.0), ("cosine", 3, 0.01),
    ):  # fmt: skip
        lr, steps = 0.1, 12
        values = [rate(kind, i, lr, warmup, steps, floor) for i in range(steps)]
        peer = torch_rates(kind, lr, warmup, steps, floor)
        assert max(abs(a - b) for a, b in zip(values, peer)) < 1e-12, (kind, values, peer)
        text = Raw("[" + ", ".join(repr(v) for v in values) + "]")
        rows.append({"kind": kind, "lr": lr, "warmup": warmup, "steps": steps, "min_lr": floor, "values": text})
    return {
        "formula": "s < warmup: lr (s + 1) / warmup; else with p = (s - warmup) / (steps - warmup): constant lr;"
        " linear lr + (min_lr - lr) p; cosine min_lr + (lr - min_lr) (1 + cos(pi p)) / 2."
        " The same as torch.optim.lr_scheduler's LinearLR then ConstantLR, LinearLR or CosineAnnealingLR.",
        "rows": rows,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    export_linear(os.path.join(OUT, "grad_scaler.onnx"))
    save("grad_scaler.json", {"about": SCALER_SCHEMA, "cases": scaler_cases()})
    save("optimizers.json", optimizers())
