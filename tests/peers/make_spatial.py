"""Writes tests/fixtures/spatial: resizing, pooling, convolutions over one and three axes and
normalisations without running statistics, each in a branch of its own, with gradients in f64.

    python3 tests/peers/make_spatial.py

The form is that of the other fixtures (tests/fixtures/README.md); weights are inside the graph.
"""

import json
import os

import torch
from fixture import gradients, reference, save
from torch import nn
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "fixtures", "spatial")


def resize(**how):
    return lambda y: F.interpolate(y, **how)


def volume(f):
    """[n,6,9,7] as [n,2,3,9,7]."""
    return lambda y: f(y.reshape(-1, 2, 3, 9, 7))


def line(f):
    return lambda y: f(y.reshape(-1, 6, 63))


BRANCHES = {
    "linear2": resize(scale_factor=2, mode="bilinear", align_corners=False),
    "linear_aligned": resize(scale_factor=2, mode="bilinear", align_corners=True),
    "linear_size": resize(size=(5, 11), mode="bilinear", align_corners=False),
    "linear_fraction": resize(scale_factor=1.7, mode="bilinear", align_corners=False),
    "cubic": resize(scale_factor=2, mode="bicubic", align_corners=False),
    "cubic_aligned": resize(size=(12, 5), mode="bicubic", align_corners=True),
    "nearest2": resize(scale_factor=2, mode="nearest"),
    "nearest_size": resize(size=(6, 10), mode="nearest"),
    "nearest_down": resize(size=(3, 7), mode="nearest"),
    "linear_line": line(resize(size=40, mode="linear", align_corners=False)),
    "linear_volume": volume(resize(size=(5, 4, 9), mode="trilinear", align_corners=False)),
    "nearest_volume": volume(resize(scale_factor=2, mode="nearest")),
    "average": nn.AvgPool2d(3, 2, 1),
    "average_inside": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average_ceil": nn.AvgPool2d(2, 2, 1, ceil_mode=True),
    "average_ceil_inside": nn.AvgPool2d(2, 2, 1, ceil_mode=True, count_include_pad=False),
    "average_line": line(nn.AvgPool1d(4, 3, 1)),
    "average_volume": volume(nn.AvgPool3d((2, 3, 2), (1, 2, 2), (1, 1, 0))),
    "max": nn.MaxPool2d(3, 2, 1),
    "max_ceil": nn.MaxPool2d(2, 2, ceil_mode=True),
    "max_dilated": nn.MaxPool2d(2, 1, 1, dilation=2),
    "max_wide": nn.MaxPool2d(7, 1, 3),
    "max_line": line(nn.MaxPool1d(3, 2)),
    "max_volume": volume(nn.MaxPool3d(2, (1, 2, 2), (1, 0, 1))),
    "conv_line": line(nn.Conv1d(6, 4, 5, 2, 3, 2)),
    "conv_volume": volume(nn.Conv3d(2, 4, 3, (1, 2, 1), (1, 1, 0), (1, 1, 2))),
    "conv_volume_groups": volume(nn.Conv3d(2, 6, (2, 3, 1), groups=2)),
    "up_line": line(nn.ConvTranspose1d(6, 4, 4, 3, 1, 1, groups=2)),
    "up": nn.ConvTranspose2d(6, 3, (3, 2), (2, 3), (1, 0), (1, 1), dilation=(2, 1)),
    "up_volume": volume(nn.ConvTranspose3d(2, 4, (3, 2, 3), (2, 1, 2), 1, (1, 0, 1), groups=2)),
    "same": nn.Conv2d(6, 4, (4, 3), padding="same"),
    "batch_norm": nn.BatchNorm2d(6, track_running_stats=False),
}


class ComputedNorm(nn.Module):
    """Normalisations whose scale and shift are computed, and filters that are normalised."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.filters = nn.Parameter(torch.randn(5, 6, 3, 3))
        self.gain = nn.Parameter(torch.randn(5))

    def forward(self, y):
        w, b = torch.tanh(self.w), torch.sin(self.b)
        y = F.batch_norm(y, None, None, w, b, training=True)
        y = F.group_norm(torch.tanh(y), 3, w * b, b)
        f = F.batch_norm(self.filters.reshape(1, 5, -1), None, None, self.gain * 0.5, training=True)
        return F.conv2d(y, f.reshape(5, 6, 3, 3))


class Net(nn.Module):
    """A learned weight for every element of every result, so that none hides behind another."""

    def __init__(self, x):
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.branches = dict(BRANCHES, computed=ComputedNorm())
        self.own = nn.ModuleDict()
        for name, f in self.branches.items():
            own = f if isinstance(f, nn.Module) else getattr(f, "module", None)
            cells = [c.cell_contents for c in (getattr(f, "__closure__", None) or ())]
            own = own or next((c for c in cells if isinstance(c, nn.Module)), None)
            if own is not None and list(own.parameters()):
                self.own[name] = own
        y = self.conv(x)
        self.weight = nn.ParameterDict(
            {n: nn.Parameter(torch.randn(f(y).shape[1:])) for n, f in self.branches.items()})  # fmt: skip
        # Numbers: what the exporter takes for the extents of a pool with `ceil_mode` is not PyTorch's.
        self.scale = {n: w[0].numel() ** -0.5 for n, w in self.weight.items()}
        self.head = nn.Linear(sum(w.shape[0] for w in self.weight.values()), 7)

    def forward(self, x):
        y = self.conv(x)
        parts = []
        for name, f in self.branches.items():
            z = f(y) * self.weight[name]
            z = z.flatten(2)
            parts.append(torch.tanh(z.sum(2) * self.scale[name]))
        return self.head(torch.cat(parts, 1))


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(1234)
    x, t = torch.randn(3, 3, 9, 7), torch.randint(0, 7, (3,))
    net = Net(x).train()
    def of(dtype):
        return gradients(net, lambda net: F.cross_entropy(net(x.to(dtype)), t), dtype)

    loss, exact = of(torch.float64)
    _, have = of(torch.float32)
    far = {"f32": {n: float((have[n] - g).norm() / g.norm()) for n, g in exact.items()}}
    torch.onnx.export(
        net, (x,), os.path.join(OUT, "model.onnx"), dynamo=False, opset_version=18,
        training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False, input_names=["x"],
        output_names=["logits"])  # fmt: skip
    # f32 holds what is compared to 1e-5.
    save(OUT, x, t, reference(loss, exact, torch.float32))
    meta = {"name": "spatial", "torch": torch.__version__, "grad_rel_l2_err_vs_f64": far}
    with open(os.path.join(OUT, "meta.json"), "w") as file:
        json.dump(meta, file, indent=1)


if __name__ == "__main__":
    main()
