"""Writes tests/fixtures/activations: each activation of torch.nn behind a convolution and behind a
linear layer, with gradients in f64, and the same network with active dropout.

    python3 tests/peers/make_activations.py

The form is that of the other fixtures (tests/fixtures/README.md); weights are inside the graphs.
"""

import json
import os

import torch
from fixture import reference, save
from torch import nn
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "fixtures", "activations")

class Silu(nn.Module):
    """As exporters write it, so that PyTorch's autocast saves what a graph of them does."""

    def forward(self, x):
        return x * torch.sigmoid(x)


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky": nn.LeakyReLU(0.1),
    "prelu": nn.PReLU(),
    "relu6": nn.ReLU6(),
    "elu": nn.ELU(),
    "celu": nn.CELU(0.7),
    "selu": nn.SELU(),
    "gelu": nn.GELU(),
    "silu": Silu(),
    "mish": nn.Mish(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardtanh": nn.Hardtanh(-0.5, 0.5),
    "softplus": nn.Softplus(),
    "softsign": nn.Softsign(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
}


class Net(nn.Module):
    """Every activation in a branch of its own, so that no fault hides behind another."""

    def __init__(self, dropout):
        super().__init__()
        self.act = nn.ModuleDict(ACTIVATIONS)
        self.conv = nn.ModuleDict({n: nn.Conv2d(3, 6, 3, padding=1) for n in ACTIVATIONS})
        self.linear = nn.ModuleDict({n: nn.Linear(6, 5) for n in ACTIVATIONS})
        self.head = nn.Linear(5 * len(ACTIVATIONS), 7)
        self.dropout = nn.Dropout(0.25) if dropout else nn.Identity()

    def forward(self, x):
        parts = []
        for name, act in self.act.items():
            y = 2 * act(3 * self.conv[name](x))
            parts.append(act(4 * self.linear[name](self.dropout(y.mean((2, 3))))))
        return self.head(self.dropout(torch.cat(parts, 1)))


def gradients(net, x, t, dtype, autocast):
    net = net.to(dtype)
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = net(x.to(dtype))
    loss = F.cross_entropy(y.double() if dtype == torch.float64 else y.float(), t)
    loss.backward()
    found = {n: p.grad.double().clone() for n, p in net.named_parameters()}
    net.float()
    return loss.item(), found


def export(net, x, name):
    torch.onnx.export(
        net, (x,), os.path.join(OUT, name), dynamo=False, opset_version=17,
        training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False, input_names=["x"],
        output_names=["logits"], dynamic_axes={"x": {0: "n"}, "logits": {0: "n"}})  # fmt: skip


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(1234)
    net = Net(False).train()
    x, t = torch.randn(8, 3, 9, 7), torch.randint(0, 7, (8,))
    loss, exact = gradients(net, x, t, torch.float64, False)
    far = {}
    for name, autocast in (("f32", False), ("bf16", True)):
        _, have = gradients(net, x, t, torch.float32, autocast)
        far[name] = {n: float((have[n] - g).norm() / g.norm()) for n, g in exact.items()}
    export(net, x, "model.onnx")
    dropout = Net(True).train()
    dropout.load_state_dict(net.state_dict())
    export(dropout, x, "dropout.onnx")
    save(OUT, x, t, reference(loss, exact))
    meta = {"name": "activations", "torch": torch.__version__, "grad_rel_l2_err_vs_f64": far}
    with open(os.path.join(OUT, "meta.json"), "w") as file:
        json.dump(meta, file, indent=1)


if __name__ == "__main__":
    main()
