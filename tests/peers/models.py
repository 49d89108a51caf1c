"""The benchmark networks as PyTorch modules, and their training steps.

The first two are the graphs of tests/models/cifar_cnn_w32.ts.op17.train.onnx and
tests/models/gpt_4x256.ts.op17.train.onnx; recurrent ones are exported when they are asked for. `check`
compares parameter names and shapes with the ONNX file, and the outputs with ONNX Runtime's.
"""

import math
import os

import torch
from torch import nn
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(HERE, "..", "models")


def conv(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class CifarCnn(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        w = width
        self.f = nn.Sequential(
            conv(3, w), conv(w, w), nn.MaxPool2d(2),
            conv(w, 2 * w), conv(2 * w, 2 * w), nn.MaxPool2d(2),
            conv(2 * w, 4 * w), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.f(x)


class Block(nn.Module):
    """`fused` uses PyTorch's own attention and GELU, the faster form; else the exported graph's."""

    def __init__(self, width, heads, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.ln_1 = nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.m_proj = nn.Linear(4 * width, width)

    def forward(self, x, mask):
        b, t, c = x.shape
        parts = self.c_attn(self.ln_1(x)).split(c, dim=2)
        q, k, v = (u.view(b, t, self.heads, c // self.heads).transpose(1, 2) for u in parts)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(c // self.heads))
            scores = scores.masked_fill(mask[:, :, :t, :t] == 0, float("-inf"))
            y = F.softmax(scores, dim=-1) @ v
        x = x + self.c_proj(y.transpose(1, 2).reshape(b, t, c))
        h = self.c_fc(self.ln_2(x))
        if self.fused:
            h = F.gelu(h, approximate="tanh")
        else:
            h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h * h * h)))
        return x + self.m_proj(h)


class Gpt(nn.Module):
    def __init__(self, layers=4, width=256, heads=4, vocab=256, context=128, fused=False):
        super().__init__()
        self.wte = nn.Embedding(vocab, width)
        self.wpe = nn.Embedding(context, width)
        self.h = nn.ModuleList(Block(width, heads, fused) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.lm_head.weight = self.wte.weight
        mask = torch.tril(torch.ones(context, context)).view(1, 1, context, context)
        self.register_buffer("mask", mask, persistent=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, input_ids):
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.shape[1]))
        for block in self.h:
            x = block(x, self.mask)
        return self.lm_head(self.ln_f(x))


class Tagger(nn.Module):
    """One recurrent layer, and a class for every step."""

    def __init__(self, kind, width=256, classes=10):
        super().__init__()
        self.rnn = getattr(nn, kind)(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


RECURRENT = {"lstm_256": "LSTM", "gru_256": "GRU"}


class Volume(nn.Module):
    """One convolution over three axes, and a class for every sample."""

    def __init__(self, width=32, classes=10):
        super().__init__()
        self.conv = nn.Conv3d(3, width, 3, padding=1)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).mean((2, 3, 4)))


# Extents of the batch. The second is torchvision's.
VOLUMES = {"conv3d_32": (16, 3, 8, 32, 32), "r3d_18": (2, 3, 4, 32, 32)}


def export(name, path):
    """Writes the graph of a network that tests/models does not have."""
    torch.onnx.export(
        build(name), (batch(name)[0],), path, dynamo=False, opset_version=17,
        training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False,
        input_names=[CASES[name]["input"]], output_names=["logits"])  # fmt: skip


# What one configuration trains: the ONNX file, the batch, the optimizer and the recipe's words.
CASES = {
    "cifar_cnn_w32": {
        "onnx": "cifar_cnn_w32.ts.op17.train.onnx",
        "input": "x",
        "parameters": 141_000,
        "batch": 64,
        "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
    },
    "gpt_4x256": {
        "onnx": "gpt_4x256.ts.op17.train.onnx",
        "input": "input_ids",
        "parameters": 3_257_000,
        "batch": 8,
        "optimizer": {
            "kind": "adamw", "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01,
        },
    },
    # 128 steps of 32 sequences.
    **{
        name: {"input": "x", "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9}}
        for name in [*RECURRENT, *VOLUMES]
    },
}  # fmt: skip


def build(name, fused=False):
    torch.manual_seed(1234)
    if name in RECURRENT:
        return Tagger(RECURRENT[name]).train()
    if name == "conv3d_32":
        return Volume().train()
    if name == "r3d_18":
        import torchvision

        return torchvision.models.video.r3d_18(num_classes=10).train()
    return (CifarCnn() if name == "cifar_cnn_w32" else Gpt(fused=fused)).train()


def batch(name):
    """One fixed random batch: the network's input and its int64 labels."""
    g = torch.Generator().manual_seed(1)
    if name in RECURRENT:
        return torch.randn(128, 32, 256, generator=g), torch.randint(10, (128, 32), generator=g)
    if name in VOLUMES:
        n = VOLUMES[name]
        return torch.randn(n, generator=g), torch.randint(10, n[:1], generator=g)
    n = CASES[name]["batch"]
    if name == "cifar_cnn_w32":
        return torch.randn(n, 3, 32, 32, generator=g), torch.randint(10, (n,), generator=g)
    rows = torch.randint(256, (n, 129), generator=g)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def optimizer(name, net):
    o = CASES[name]["optimizer"]
    if o["kind"] == "sgd":
        return torch.optim.SGD(net.parameters(), lr=o["lr"], momentum=o["momentum"])
    return torch.optim.AdamW(
        net.parameters(), lr=o["lr"], betas=tuple(o["betas"]), eps=o["eps"],
        weight_decay=o["weight_decay"],
    )  # fmt: skip


def stepper(name, precision, fused=False):
    """A function that does one full training step and returns its loss (a tensor)."""
    net, (x, y) = build(name, fused), batch(name)
    opt = optimizer(name, net)
    half = {"f32": None, "bf16": torch.bfloat16}[precision]

    def step():
        opt.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
            logits = net(x)
        loss = F.cross_entropy(logits.float().flatten(0, -2), y.flatten())
        loss.backward()
        opt.step()
        return loss.detach()

    return step


def check(name):
    """Fails unless the module is the ONNX graph: names, shapes, outputs for the same weights."""
    import numpy as np
    import onnx
    import onnxruntime

    net, (x, _) = build(name), batch(name)
    model = onnx.load(os.path.join(MODELS, CASES[name]["onnx"]), load_external_data=False)
    state = {k: v.detach().numpy() for k, v in net.state_dict(keep_vars=True).items()}
    for t in model.graph.initializer:
        assert list(state[t.name].shape) == list(t.dims), t.name
        t.CopyFrom(onnx.numpy_helper.from_array(state[t.name], t.name))
    parameters = {k for k, _ in net.named_parameters()}
    assert parameters <= {t.name for t in model.graph.initializer}
    count = sum(p.numel() for p in net.parameters())
    assert abs(count / CASES[name]["parameters"] - 1) < 0.01, count
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    other = session.run(None, {CASES[name]["input"]: x.numpy()})[0]
    errors = []
    for fused in (False, True):
        variant = build(name, fused)
        variant.load_state_dict(net.state_dict())
        errors.append(float(np.abs(variant(x).detach().numpy() - other).max()))
    assert max(errors) < 1e-4, errors
    return count, errors


if __name__ == "__main__":
    for case in (c for c in CASES if c not in RECURRENT):
        count, errors = check(case)
        print(f"{case}: {count} parameters, largest difference to ONNX Runtime {max(errors):.1e}")
