"""Writes tests/fixtures/origins: small networks that show what exporters keep and lose of a module:
buffers, `detach`, `no_grad`, `padding_idx`, indexed parameters, shared norms, 16-bit weights, batch
normalisation that was folded away; with PyTorch's gradients in f64.

    python3 tests/peers/make_origins.py

The batch is that of the other fixtures (tests/fixtures/README.md); weights are inside the graphs.
`reference.safetensors` has `NETWORK.PARAMETER`, the gradient of every parameter that PyTorch trains.
Stack traces are cut from the files, but for the mark of a region that was exported apart.
"""

import logging
import os
import warnings

import numpy as np
import onnx
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional as F
from torch.onnx import TrainingMode

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "fixtures", "origins")
TRACE = "pkg.torch.onnx.stack_trace"
APART = "<eval_with_key>"


class Ste(nn.Module):
    """A straight-through estimator: forward round(z), backward the identity."""

    def __init__(self):
        super().__init__()
        self.e, self.a, self.h = nn.Embedding(10, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        z = 3 * torch.sigmoid(self.a(self.e(x).mean(1)))
        return self.h(z + (torch.round(z) - z).detach())


class Padding(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.h = nn.Embedding(10, 6, padding_idx=0), nn.Linear(6, 3)

    def forward(self, x):
        return self.h(torch.tanh(self.e(x)).mean(1))


class TiedPadding(nn.Module):
    """The padding row has a gradient after all, that of the head."""

    def __init__(self):
        super().__init__()
        self.e, self.f = nn.Embedding(10, 6, padding_idx=0), nn.Linear(6, 6)

    def forward(self, x):
        return F.linear(torch.tanh(self.f(self.e(x))).mean(1), self.e.weight)


def waves(rows, columns):
    position = torch.arange(rows).double()[:, None]
    angle = position / 10000 ** (torch.arange(columns // 2).double() / (columns // 2))
    return torch.cat([torch.sin(angle), torch.cos(angle)], 1).float()


class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.h, self.norm = nn.Embedding(10, 6), nn.Linear(6, 3), nn.LayerNorm(6)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.gamma = nn.Parameter(torch.rand(6) + 0.5)
        self.positions = nn.Embedding(8, 6)
        self.positions.weight = nn.Parameter(waves(8, 6), requires_grad=False)
        self.register_buffer("embed_scale", torch.tensor(2.0))
        self.register_buffer("inv_freq", torch.rand(6))
        self.register_buffer("final_logits_bias", torch.rand(1, 3))
        self.register_buffer("volatile", torch.rand(6), persistent=False)

    def forward(self, x):
        z = self.e(x) * self.embed_scale + self.positions(torch.arange(x.shape[1]))
        z = self.norm(z * self.gamma + torch.sin(self.inv_freq) * self.volatile)
        return self.h(z.mean(1)) * self.logit_scale + self.final_logits_bias


class Indexed(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.h = nn.Embedding(10, 6), nn.Linear(6, 3)
        self.p, self.q = nn.Parameter(torch.randn(12, 6)), nn.Parameter(torch.randn(4, 6))
        self.register_buffer("i", torch.tensor([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]]))

    def forward(self, x):
        rows = self.p[torch.arange(5) * 2 + 1]
        return self.h((self.e(x) + rows).mean(1) + torch.gather(self.q, 0, self.i).sum(0))


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.h, self.norm = nn.Embedding(10, 6), nn.Linear(6, 3), nn.LayerNorm(6)

    def forward(self, x):
        z = self.norm(self.e(x)).masked_fill((x == 0)[..., None], torch.finfo(self.e.weight.dtype).min / 4096)
        return self.h(torch.tanh(z).mean(1)).to(torch.float64 if z.dtype == torch.float64 else torch.float32)


class BatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.h = nn.Embedding(10, 4), nn.Linear(4, 3)
        self.c, self.bn = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        with torch.no_grad():
            self.bn.running_mean.normal_(), self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x):
        z = self.e(x).transpose(1, 2)[..., None]
        return self.h(torch.relu(self.bn(self.c(z))).mean((2, 3)))


class Shared(nn.Module):
    """One norm that is called three times, as ALBERT's."""

    def __init__(self):
        super().__init__()
        self.e, self.h, self.norm = nn.Embedding(10, 6), nn.Linear(6, 3), nn.LayerNorm(6)

    def forward(self, x):
        z = self.norm(self.e(x))
        return self.h(self.norm(torch.tanh(self.norm(z))).mean(1))


class Norms(nn.Module):
    """Two norms with equal first values."""

    def __init__(self):
        super().__init__()
        self.e, self.h = nn.Embedding(10, 6), nn.Linear(6, 3)
        self.a, self.b = nn.LayerNorm(6), nn.LayerNorm(6)

    def forward(self, x):
        return self.h(self.b(torch.tanh(self.a(self.e(x)))).mean(1))


class NoGrad(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.a, self.h = nn.Embedding(10, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        z = self.a(self.e(x).mean(1))
        with torch.no_grad():
            w = torch.tanh(z)
        return self.h(z * w)


def scrub(path):
    model = onnx.load(path)
    for node in model.graph.node:
        for p in list(node.metadata_props):
            if p.key == TRACE:
                apart = APART in p.value
                node.metadata_props.remove(p)
                if apart:
                    node.metadata_props.add(key=TRACE, value=f'File "{APART}.1", line 1, in forward')
    onnx.save(model, path)


def export(net, x, name, **how):
    path = os.path.join(OUT, f"{name}.onnx")
    if how.get("dynamo"):
        shapes = {"x": {0: torch.export.Dim("batch")}}
        how = {"opset_version": 18, "external_data": False, "dynamic_shapes": shapes, **how}
    else:
        axes = {"x": {0: "batch"}, "logits": {0: "batch"}}
        how = {
            "opset_version": 17, "training": TrainingMode.TRAINING, "do_constant_folding": False,
            "dynamic_axes": axes, "dynamo": False, **how,
        }
    torch.onnx.export(net, (x,), path, input_names=["x"], output_names=["logits"], **how)
    scrub(path)


def gradients(net, x, t):
    net = net.double()
    loss = F.cross_entropy(net(x), t)
    loss.backward()
    return {n: p.grad.numpy() for n, p in net.named_parameters() if p.requires_grad}


def main():
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(1234)
    torch.set_num_threads(1)
    os.makedirs(OUT, exist_ok=True)
    x = torch.randint(1, 10, (6, 5))
    x[:, 3:] = 0
    t = torch.randint(0, 3, (6,))
    batch = {"in.x": x.numpy(), "tgt.targets": t.numpy()}
    save_file(batch, os.path.join(OUT, "batch.safetensors"))
    networks = {
        "ste": Ste, "padding": Padding, "tied": TiedPadding, "buffers": Buffers, "indexed": Indexed,
        "half": Half, "bfloat": Half, "batch_norm": BatchNorm, "shared": Shared, "norms": Norms,
        "no_grad": NoGrad,
    }
    reference = {}
    for name, network in networks.items():
        net = network().train()
        if name in ("half", "bfloat"):
            net = net.to(torch.float16 if name == "half" else torch.bfloat16)
        if name == "batch_norm":
            # What the defaults of both exporters make of it.
            export(net.eval(), x, "batch_norm", training=TrainingMode.EVAL, do_constant_folding=True)
            export(net, x, "batch_norm_dynamo", dynamo=True, optimize=True)
            continue
        if name == "norms":
            export(net, x, "norms", training=TrainingMode.EVAL, do_constant_folding=True)
            export(net, x, "norms_dynamo", dynamo=True, optimize=True)
            net = net.train()
        else:
            export(net, x, name)
            export(net, x, f"{name}_dynamo", dynamo=True, optimize=False)
        if name == "ste":
            export(net, x, "ste_optimized", dynamo=True, optimize=True)
        for parameter, grad in gradients(net, x, t).items():
            reference[f"{name}.{parameter}"] = np.ascontiguousarray(grad)
    save_file(reference, os.path.join(OUT, "reference.safetensors"))


if __name__ == "__main__":
    main()
