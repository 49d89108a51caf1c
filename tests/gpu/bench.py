"""Times PyTorch's training steps of one network on one device and prints one JSON line.

    python bench.py gpt2_small --precision bf16 --mode graphs --steps 30
    python bench.py gpt2_small --weights w.safetensors --batch b.safetensors      writes them

Modes: `eager`; `compile` (torch.compile); `graphs` (torch.compile, mode "reduce-overhead", which
captures CUDA graphs). All with fused optimizers, channels-last convolutions and PyTorch's own
attention. A step is forward, cross-entropy, backward and update on one fixed batch on the device;
its time is that between two CUDA events. Gradients are set to none. TF32 is allowed in f32 only
with --precision tf32.
"""

import argparse
import json
import time

import nets
import tensors
import torch
from torch.nn import functional as F


def optimizer(name, net, device):
    o = nets.CASES[name]["optimizer"]
    fused = device == "cuda"
    if o["kind"] == "sgd":
        return torch.optim.SGD(net.parameters(), lr=o["lr"], momentum=o["momentum"], fused=fused)
    return torch.optim.AdamW(
        net.parameters(), lr=o["lr"], betas=tuple(o["betas"]), eps=o["eps"],
        weight_decay=o["weight_decay"], fused=fused,
    )  # fmt: skip


def measure(name, precision, mode, device, steps, warmup):
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    net = nets.build(name).to(device)
    x, y = (t.to(device) for t in nets.batch(name))
    if x.dim() == 4:
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    opt = optimizer(name, net, device)
    half = {"bf16": torch.bfloat16, "f16": torch.float16}.get(precision)
    scaler = torch.amp.GradScaler(device, enabled=precision == "f16")

    def loss_of(x, y):
        with torch.autocast(device, dtype=half or torch.bfloat16, enabled=half is not None):
            logits = net(x)
            return F.cross_entropy(logits.flatten(0, -2), y.flatten())

    if mode == "compile":
        loss_of = torch.compile(loss_of)
    elif mode == "graphs":
        loss_of = torch.compile(loss_of, mode="reduce-overhead")

    def step():
        if mode == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        opt.zero_grad(set_to_none=True)
        loss = loss_of(x, y)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        return loss.detach().clone()

    cuda = device == "cuda"
    begin = time.perf_counter()
    losses = [step() for _ in range(warmup)]
    if cuda:
        torch.cuda.synchronize()
    ready = time.perf_counter() - begin
    seconds, events = [], []
    wall = time.perf_counter()
    for _ in range(steps):
        if cuda:
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            losses.append(step())
            pair[1].record()
            events.append(pair)
        else:
            start = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - start)
    if cuda:
        torch.cuda.synchronize()
        seconds = [a.elapsed_time(b) * 1e-3 for a, b in events]
    wall = (time.perf_counter() - wall) / steps
    used = 0
    if cuda:
        # Of the whole device, the context included, as for Precast.
        free, total = torch.cuda.mem_get_info()
        used = total - free
    return {"seconds": seconds, "wall": wall, "ready": ready, "device_bytes": used,
            "losses": [v.item() for v in losses], "torch": torch.__version__}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(nets.CASES))
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16", "f16"], default="bf16")
    parser.add_argument("--mode", choices=["eager", "compile", "graphs"], default="eager")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--weights", metavar="FILE")
    parser.add_argument("--batch", metavar="FILE")
    a = parser.parse_args()
    if a.weights:
        tensors.save(a.weights, nets.parameters(nets.build(a.name)))
        x, y = nets.batch(a.name)
        tensors.save(a.batch, {"in." + nets.input_name(a.name): x, "tgt.targets": y})
        print(json.dumps({"flops": nets.flops(a.name)}))
    else:
        print(json.dumps(measure(a.name, a.precision, a.mode, a.device, a.steps, a.warmup)))


if __name__ == "__main__":
    main()
