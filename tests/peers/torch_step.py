"""Times full training steps of one network in PyTorch eager, in this process, and prints one JSON line.

    python torch_step.py gpt_4x256 --precision bf16 --threads 2

A step is zero_grad, forward, cross-entropy, backward and optimizer update on one fixed batch.
Seconds are per step, warm-up left out. `peak_rss_mb` (MB = 1e6 bytes) is the process's own high-water mark (VmHWM),
which includes what importing torch takes (`import_rss_mb`).

    python torch_step.py gpt_4x256 --dump DIR     writes weights.safetensors and batch.safetensors,
                                                  so that another program can train the same thing
"""

import argparse
import json
import os
import time


def status_mb(field):
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/status has no {field}")


def dump(name, folder):
    from safetensors.torch import save_file

    import models

    net, (x, y) = models.build(name), models.batch(name)
    tied = {"lm_head.weight"}  # one tensor under two names; the graph uses wte.weight
    state = {
        k: v.contiguous() for k, v in net.state_dict().items()
        if k not in tied and not k.endswith("num_batches_tracked")
    }
    save_file(state, os.path.join(folder, "weights.safetensors"))
    case = models.CASES[name]
    tensors = {"in." + case["input"]: x, "tgt.targets": y}
    save_file(tensors, os.path.join(folder, "batch.safetensors"))
    graph = os.path.join(models.MODELS, case.get("onnx", ""))
    if "onnx" not in case:
        graph = os.path.join(folder, "exported.onnx")
        models.export(name, graph)
    info = {"onnx": graph, "input": case["input"],
            "optimizer": case["optimizer"]}  # fmt: skip
    print(json.dumps(info))


def measure(name, precision, threads, steps, warmup, fused):
    import torch

    import models

    torch.set_num_threads(threads)
    import_rss = status_mb("VmRSS")
    step = models.stepper(name, precision, fused)
    seconds, losses = [], []
    for i in range(warmup + steps):
        start = time.perf_counter()
        loss = step()
        if i >= warmup:
            seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    return {
        "model": name, "precision": precision, "threads": threads, "fused": fused,
        "torch": torch.__version__, "seconds": seconds, "losses": losses,
        "peak_rss_mb": round(status_mb("VmHWM"), 1), "import_rss_mb": round(import_rss, 1),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    known = ["cifar_cnn_w32", "gpt_4x256", "lstm_256", "gru_256", "conv3d_32", "r3d_18"]
    parser.add_argument("model", choices=known)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--fused", action="store_true", help="PyTorch's own attention and GELU")
    parser.add_argument("--dump", metavar="DIR")
    a = parser.parse_args()
    if a.dump:
        dump(a.model, a.dump)
    else:
        print(json.dumps(measure(a.model, a.precision, a.threads, a.steps, a.warmup, a.fused)))
