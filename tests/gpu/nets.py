"""The benchmark networks on a GPU, with PyTorch's fastest operations, and their batches.

Parameter names are those of the graphs that export.py writes, so that both sides start from the
same weights.
"""

import os
import sys

import torch
from torch import nn
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "peers"), HERE]

import models  # noqa: E402  (tests/peers)


class Block(models.Block):
    """With attention and GELU as single operations, on any device."""

    def __init__(self, width, heads):
        super().__init__(width, heads, fused=True)

    def forward(self, x, mask=None):
        return super().forward(x, mask)


class Gpt(nn.Module):
    def __init__(self, layers, width, heads, vocab, context):
        super().__init__()
        self.wte = nn.Embedding(vocab, width)
        self.wpe = nn.Embedding(context, width)
        self.h = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.lm_head.weight = self.wte.weight
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """ResNet-50 (He et al. 2015, stride in the 3x3), names as in torchvision."""

    def __init__(self, depths=(3, 4, 6, 3), classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs, layers = 64, []
        for i, depth in enumerate(depths):
            width, stride = 64 << i, 1 if i == 0 else 2
            blocks = [Bottleneck(inputs, width, stride)]
            inputs = 4 * width
            blocks += [Bottleneck(inputs, width, 1) for _ in range(depth - 1)]
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


ADAMW = {"kind": "adamw", "lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
SGD = {"kind": "sgd", "lr": 0.01, "momentum": 0.9}

# `rows` of one batch; `unit` is what a second's work is counted in, `per_row` of them in a row.
CASES = {
    "gpt2_small": {
        "gpt": (12, 768, 12, 50304, 1024), "rows": 8, "optimizer": ADAMW, "unit": "tokens",
        "per_row": 1024,
    },
    "cifar_cnn": {"width": 64, "rows": 512, "optimizer": SGD, "unit": "images", "per_row": 1},
    "resnet50": {"size": 224, "rows": 128, "optimizer": SGD, "unit": "images", "per_row": 1},
    # For a dry run on a processor.
    "gpt_dry": {
        "gpt": (2, 64, 4, 256, 64), "rows": 2, "optimizer": ADAMW, "unit": "tokens", "per_row": 64,
    },
    "cnn_dry": {"width": 16, "rows": 8, "optimizer": SGD, "unit": "images", "per_row": 1},
}  # fmt: skip


def input_name(name):
    return "input_ids" if "gpt" in CASES[name] else "x"


def build(name):
    """The network for timing, in training mode, on the CPU, with the weights of seed 1234."""
    torch.manual_seed(1234)
    c = CASES[name]
    if "gpt" in c:
        net = Gpt(*c["gpt"])
    elif "size" in c:
        net = ResNet50()
    else:
        net = models.CifarCnn(c["width"])
    return net.train()


def exported(name):
    """The same network in the form that is exported: attention spelled out for GPTs."""
    c = CASES[name]
    if "gpt" not in c:
        return build(name)
    layers, width, heads, vocab, context = c["gpt"]
    return models.Gpt(layers, width, heads, vocab, context).train()


def batch(name):
    """One fixed random batch: input and int64 labels."""
    g = torch.Generator().manual_seed(1)
    c = CASES[name]
    n = c["rows"]
    if "gpt" in c:
        vocab, context = c["gpt"][3:]
        rows = torch.randint(vocab, (n, context + 1), generator=g)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    side, classes = (c["size"], 1000) if "size" in c else (32, 10)
    return torch.randn(n, 3, side, side, generator=g), torch.randint(classes, (n,), generator=g)


def parameters(net):
    """Tensors of a network under the names of its graph; tied ones once."""
    tied = {"lm_head.weight"} if isinstance(net, Gpt) else set()
    return {
        k: v.contiguous() for k, v in net.state_dict().items()
        if k not in tied and not k.endswith("num_batches_tracked")
    }  # fmt: skip


def flops(name):
    """Floating-point operations of products in one step, forward and backward (a multiplication and
    an addition are two), counted by PyTorch over shapes alone; causal attention counts whole."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net = build(name)
        x, y = (t.to("meta") for t in batch_shapes(name))
    counter = FlopCounterMode(display=False)
    with counter:
        F.cross_entropy(net(x).flatten(0, -2), y.flatten()).backward()
    return counter.get_total_flops()


def batch_shapes(name):
    c = CASES[name]
    n = c["rows"]
    if "gpt" in c:
        ids = torch.empty(n, c["gpt"][4], dtype=torch.long, device="meta")
        return ids, ids
    side = c.get("size", 32)
    return (torch.empty(n, 3, side, side, device="meta"),
            torch.empty(n, dtype=torch.long, device="meta"))  # fmt: skip
