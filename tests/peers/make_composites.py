"""Writes tests/fixtures/composites: normalisations and pools written out in small operations, each in
a branch of its own, over rows of large numbers (up to 2100), small ones (0.001) and zeros, with
gradients in f64.

    python3 tests/peers/make_composites.py

The form is that of the other fixtures (tests/fixtures/README.md); weights are inside the graphs.
"""

import os

import onnx
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "fixtures", "composites")
WIDTH = 16


def inverse_rms(x, dim=-1, eps=1e-6):
    return torch.rsqrt(x.pow(2).mean(dim, keepdim=True) + eps)


class Composite(nn.Module):
    """One composite over [batch, rows, WIDTH], pooled to [batch, WIDTH]."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind in ("rms", "rms_square", "rms_one_plus", "rms_root", "rms_power", "layer"):
            self.weight = nn.Parameter(0.5 + torch.rand(WIDTH))
        if kind == "layer":
            self.bias = nn.Parameter(torch.rand(WIDTH) - 0.5)

    def forward(self, x, mask):
        k = self.kind
        if k == "rms":
            y = self.weight * (x * inverse_rms(x)).to(x.dtype)
        elif k == "rms_square":
            y = (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)) * self.weight
        elif k == "rms_one_plus":
            y = (x * inverse_rms(x)) * (1.0 + self.weight)
        elif k == "rms_root":
            y = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        elif k == "rms_power":
            y = x * torch.pow(x.pow(2).mean(-1, keepdim=True) + 1e-6, -0.5) * self.weight
        elif k == "rms_rows":
            y = x * inverse_rms(x, 1, 1e-5)
        elif k == "layer":
            c = x - x.mean(-1, keepdim=True)
            y = c / torch.sqrt((c * c).mean(-1, keepdim=True) + 1e-5) * self.weight + self.bias
        elif k == "l2":
            y = F.normalize(x, dim=-1)
        elif k == "l2_sum":
            y = x / (x.norm(dim=-1, keepdim=True) + 1e-8)
        elif k == "l2_root":
            y = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)
        elif k == "masked":
            y = (x * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            return F.layer_norm(y, (WIDTH,))
        elif k == "pairwise":
            d = F.pairwise_distance(x, x.roll(1, 1), eps=1e-3, keepdim=True)
            y = F.layer_norm(x, (WIDTH,)) * torch.exp(-1e-3 * d)
        elif k == "gem":
            y = x.clamp(min=1e-6).pow(3).mean(1).pow(1.0 / 3)
            return F.normalize(y, dim=-1)
        return y.mean(1)


KINDS = ["rms", "rms_square", "rms_one_plus", "rms_root", "rms_power", "rms_rows", "layer", "l2",
         "l2_sum", "l2_root", "masked", "gem", "pairwise"]  # fmt: skip


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({k: nn.Linear(4, WIDTH, bias=False) for k in KINDS})
        self.norm = nn.ModuleDict({k: Composite(k) for k in KINDS})
        self.head = nn.ModuleDict({k: nn.Linear(WIDTH, 3, bias=False) for k in KINDS})

    def forward(self, x):
        mask = (x.abs().sum(-1, keepdim=True) > 0).to(x.dtype)
        logits = 0
        for k in KINDS:
            logits = logits + self.head[k](self.norm[k](self.inner[k](x), mask))
        return logits


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(1234)
    net = Net().train()
    x, t = torch.randn(7, 5, 4), torch.randint(0, 3, (7,))
    with torch.no_grad():
        most = max(float(net.inner[k](x).abs().max()) for k in KINDS)
    large = 2100 / most
    scales = torch.ones(7, 5, 1)
    scales[0] = large
    scales[1] = 1e-3
    scales[2] = 0
    scales[3] = torch.tensor([large, 1, 1e-3, 0, 1])[:, None]
    x = x * scales
    save_file({"in.x": x, "tgt.targets": t}, os.path.join(OUT, "batch.safetensors"))
    exact = net.double()
    loss = F.cross_entropy(exact(x.double()), t)
    loss.backward()
    reference = {f"grad.{n}": p.grad.contiguous() for n, p in exact.named_parameters()}
    reference["loss.f64"] = loss.detach().reshape(1)
    save_file(reference, os.path.join(OUT, "reference.safetensors"))
    net = net.float()
    torch.onnx.export(
        net, (x,), os.path.join(OUT, "model.onnx"), dynamo=False, opset_version=17,
        training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False, input_names=["x"],
        output_names=["logits"])  # fmt: skip
    torch.onnx.export(
        net, (x,), os.path.join(OUT, "model_dynamo.onnx"), dynamo=True, optimize=False,
        opset_version=18, input_names=["x"], output_names=["logits"], external_data=False,
        verbose=False)  # fmt: skip
    strip(os.path.join(OUT, "model_dynamo.onnx"))


def strip(path):
    """Without the places in this file that every node was made at."""
    model = onnx.load(path)
    graph = model.graph
    for part in [model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output]:
        part.ClearField("metadata_props")
    for part in [*graph.input, *graph.output, *graph.initializer]:
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    onnx.save(model, path)


if __name__ == "__main__":
    main()
