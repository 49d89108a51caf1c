"""Times PyTorch's training steps of one network on one device and prints one JSON line.

    python bench.py gpt2_small --precision bf16 --mode graphs --steps 50
    python bench.py gpt2_small --weights w.safetensors --batch b.safetensors      writes them
    python bench.py --environment                                       what PyTorch runs on

Modes: `eager`; `compile` (torch.compile); `graphs` (torch.compile, mode "reduce-overhead", which
captures CUDA graphs of forward and backward; optimizer and gradient scaler run outside of them). All
with fused optimizers, channels-last convolutions, and for attention the one of PyTorch's kernels that
is fastest here at the network's shape (measured first). A step is forward, cross-entropy, backward
and update on one fixed batch on the device; its time is that between two CUDA events. Gradients are
set to none. TF32 is allowed in f32 only with --precision tf32.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
import traceback

import nets
import tensors
import torch
from torch.nn import functional as F

# Steps after which both sides' losses are compared; the scaler's skips are counted until then.
COMPARED = 10


def optimizer(name, net, device):
    o = nets.CASES[name]["optimizer"]
    fused = device == "cuda"
    if o["kind"] == "sgd":
        return torch.optim.SGD(net.parameters(), lr=o["lr"], momentum=o["momentum"], fused=fused)
    return torch.optim.AdamW(
        net.parameters(), lr=o["lr"], betas=tuple(o["betas"]), eps=o["eps"],
        weight_decay=o["weight_decay"], fused=fused,
    )  # fmt: skip


def attention(name, half, device):
    """Milliseconds of causal attention forward and backward at the network's shape by each of
    PyTorch's kernels that runs it; nothing where there is no choice."""
    c = nets.CASES[name]
    if "gpt" not in c or device != "cuda" or half is None:
        return {}
    from torch.nn.attention import SDPBackend, sdpa_kernel

    _, width, heads, _, context = c["gpt"]
    shape = c["rows"], context, heads, width // heads
    q, k, v, g = (torch.randn(shape, device=device, dtype=half).transpose(1, 2) for _ in range(4))
    for t in (q, k, v):
        t.requires_grad_()
    took = {}
    for which in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"):
        try:
            with sdpa_kernel(getattr(SDPBackend, which)):
                times = []
                for _ in range(10):
                    a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    a.record()
                    F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(g)
                    b.record()
                    torch.cuda.synchronize()
                    times.append(a.elapsed_time(b))
        except (RuntimeError, AttributeError):
            continue
        took[which] = sorted(times)[len(times) // 2]
    return took


def preferred(took):
    """A context in which attention runs by the fastest of these."""
    if not took:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [getattr(SDPBackend, which) for which in sorted(took, key=took.get)]
    return sdpa_kernel([*order, SDPBackend.MATH], set_priority=True)


def working(step):
    """Clock, power and memory of the GPU while it goes on stepping, asked for after the timing."""
    fields = "clocks.sm,power.draw,memory.used"
    command = ["nvidia-smi", "-i", "0", "--query-gpu=" + fields, "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except OSError:
        return {}
    until = time.perf_counter() + 5
    while asked.poll() is None and time.perf_counter() < until:
        step()
        torch.cuda.synchronize()
    if asked.poll() is None:
        asked.kill()
        return {}
    try:
        clock, power, memory = map(float, asked.stdout.read().split(","))
    except ValueError:
        return {}
    return {"sm_mhz": clock, "watts": power, "used_bytes": memory * 2**20}


def counters():
    """What torch.compile did not do as it was asked, which it says nowhere else."""
    from torch._dynamo.utils import counters as counted

    return {"cudagraph_skips": counted["inductor"]["cudagraph_skips"],
            "graph_breaks": sum(counted["graph_break"].values()),
            "graphs": counted["stats"]["unique_graphs"]}  # fmt: skip


def measure(a):
    name, precision, mode, device, steps = a.name, a.precision, a.mode, a.device, a.steps
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    if mode != "eager":
        import torch._inductor.config as inductor

        # What was measured while something else ran on the device is not to be chosen by.
        inductor.autotune_local_cache = False
    cuda = device == "cuda"
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

    def settled():
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    took = attention(name, half, device)
    with preferred(took):
        begin = settled()
        losses, skips = [], 0
        while len(losses) < a.warmup:
            scale = scaler.get_scale()
            losses.append(step())
            # A skipped step lowers the scale.
            skips += len(losses) <= COMPARED and scaler.get_scale() < scale
        ready = settled()
        # Clocks rise under steady work, and both sides are timed after as much of it.
        while settled() - ready < a.warm_seconds:
            losses += [step() for _ in range(5)]
        if a.profile:
            return profiled(step, a.profile)
        seconds, events = [], []
        wall = settled()
        for _ in range(steps):
            if cuda:
                pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                pair[0].record()
                losses.append(step())
                pair[1].record()
                events.append(pair)
            else:
                start = time.perf_counter()
                losses.append(step())
                seconds.append(time.perf_counter() - start)
        wall = (settled() - wall) / steps
        if cuda:
            seconds = [first.elapsed_time(second) * 1e-3 for first, second in events]
        memory = {}
        if cuda:
            free, total = torch.cuda.mem_get_info()
            memory = {"device_bytes": total - free, "allocated_bytes": torch.cuda.max_memory_allocated(),
                      "reserved_bytes": torch.cuda.max_memory_reserved(), **working(step)}  # fmt: skip
    return {"seconds": seconds, "wall": wall, "ready": ready - begin, "attention_ms": took,
            "skips": skips, "losses": [v.item() for v in losses], "torch": torch.__version__,
            "counters": counters() if mode != "eager" else {}, **memory}  # fmt: skip


def profiled(step, path):
    """Writes a table of the GPU's time by kernel over ten steps."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CUDA] if torch.cuda.is_available() else [ProfilerActivity.CPU]
    with profile(activities=activities) as p:
        for _ in range(10):
            step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    with open(path, "w") as file:
        file.write(p.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=90))
    return {"profile": path}


def environment():
    """Versions, the GPU, and the files of the libraries that PyTorch uses."""
    have = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0]}
    for name in ("triton", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12"):
        try:
            have[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    have["cudnn"] = torch.backends.cudnn.version()
    have["usable"] = torch.cuda.is_available()
    if have["usable"]:
        have["device"] = torch.cuda.get_device_name(0)
        # So that the libraries are open: a product, a convolution, and a kernel made at run time.
        a = torch.randn(64, 64, device="cuda")
        F.conv2d((a @ a)[None, None], a[None, None, :3, :3])
        try:
            torch.cuda.jiterator._create_jit_fn("template <typename T> T f(T x) { return x + 1; }")(a)
        except Exception as e:
            have["no NVRTC"] = str(e)
        torch.cuda.synchronize()
    words = "libcublasLt.so", "libnvrtc.so", "libcudnn.so"
    files = {}
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.split(None, 5)[-1].strip()
            for word in words:
                if os.path.basename(path).startswith(word):
                    files[word.split(".")[0]] = path
    have["files"] = files
    return have


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(nets.CASES), nargs="?")
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16", "f16"], default="bf16")
    parser.add_argument("--mode", choices=["eager", "compile", "graphs"], default="eager")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=COMPARED + 2, help="first steps, not timed")
    parser.add_argument("--warm-seconds", type=float, default=0, help="further ones for so long")
    parser.add_argument("--weights", metavar="FILE")
    parser.add_argument("--batch", metavar="FILE")
    parser.add_argument("--profile", metavar="FILE", help="writes the time of every kernel instead")
    parser.add_argument("--environment", action="store_true")
    a = parser.parse_args()
    if a.environment:
        answer = environment()
    elif not a.name:
        parser.error("a network is wanted")
    elif a.weights:
        tensors.save(a.weights, nets.parameters(nets.build(a.name)))
        x, y = nets.batch(a.name)
        tensors.save(a.batch, {"in." + nets.input_name(a.name): x, "tgt.targets": y})
        answer = {"flops": nets.flops(a.name)}
    else:
        answer = measure(a)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    status = 0
    try:
        main()
    except SystemExit as e:
        status = e.code
    except BaseException:
        traceback.print_exc()
        status = 1
    # Leaving in the ordinary way waits for compile workers and tears the device down, either of
    # which can hang; the answer is out.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)
