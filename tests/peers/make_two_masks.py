"""Writes tests/fixtures/two_masks: attention under two masks that are added, chosen and put together in
every way, where some queries are left without a key (`full`) and where none is (`open`), with gradients
in f64.

    python3 tests/peers/make_two_masks.py

Each of `full.onnx` and `open.onnx` has its weights inside. `batch.safetensors` and `open.safetensors` have
`in.NAME` and `tgt.targets`: `x`, a sequence, `keep`, which of its elements count (integers), and `bias`, a mask of reals
for every query and key, as Hugging Face prepares it. `reference.safetensors` has, of both, `loss.f64`,
`grad.NAME`, and `far.FORMAT.NAME`: PyTorch's own relative distance from that under autocast.

The sums of scores and masks are rounded to f32 in the exact gradients too: PyTorch and Precast compute
them so, and in f64 a score would count beside −1e9.
"""

import os
import warnings

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "fixtures", "two_masks")
MIN = torch.finfo(torch.float32).min
SAMPLES, LENGTH, WIDTH = 4, 6, 8
INF = float("inf")


class Rounded(torch.autograd.Function):
    """To f32 and back; nothing in the exported graph."""

    @staticmethod
    def forward(ctx, x):
        return x.float().double()

    @staticmethod
    def backward(ctx, g):
        return g


def rounded(x):
    return Rounded.apply(x) if x.dtype == torch.float64 else x


def future(dtype, number):
    return torch.full((LENGTH, LENGTH), number).triu(1).to(dtype)


def padding(keep, number, dtype=torch.float32):
    return (1.0 - keep[:, None].to(dtype)) * number


def added(a, b):
    """Two masks of additions, each to the scores."""
    return lambda s, keep, bias: s + future(s.dtype, a) + padding(keep, b, s.dtype)


def together(a, b):
    """The sum of two masks is added to the scores."""
    return lambda s, keep, bias: s + (future(s.dtype, a) + padding(keep, b, s.dtype))


def chosen(a, b):
    """One replaces scores, the other is added."""

    def run(s, keep, bias):
        hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        return torch.where(hidden, a, s) + padding(keep, b, s.dtype)

    return run


def both_chosen(a, b):
    def run(s, keep, bias):
        hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        return s.masked_fill(hidden, a).masked_fill(keep[:, None] == 0, b)

    return run


def nested(a, b):
    """A mask that is chosen among numbers, beside a bias that falls with the distance."""

    def run(s, keep, bias):
        t = torch.arange(LENGTH)
        hidden = t[None] > t[:, None]
        mask = torch.where(hidden, a, torch.where(keep[:, None] == 0, b, 0.0))
        return s + mask.to(s.dtype) + (-0.5 * (t[None] - t[:, None]).abs().to(s.dtype))

    return run


def least(a, b):
    return lambda s, keep, bias: s + torch.minimum(future(s.dtype, a), padding(keep, b, s.dtype))


def of_parts(a, b):
    """A mask of two parts, the one causality alone, the other both."""

    def run(s, keep, bias):
        f, p = future(s.dtype, a)[None].expand(SAMPLES, -1, -1), padding(keep, b, s.dtype).expand(-1, LENGTH, -1)
        return s + torch.cat([f[:, :2], f[:, 2:] + p[:, 2:]], 1)

    return run


def sliced(a, b):
    """Rows of a larger mask, found by position."""

    def run(s, keep, bias):
        table = torch.full((9, 9), a).triu(1).to(s.dtype)
        rows = torch.arange(LENGTH, device=s.device)
        return s + table[rows][:, :LENGTH] + padding(keep, b, s.dtype)

    return run


def of_products(a, b):
    """Queries and keys of padding."""

    def run(s, keep, bias):
        m = keep.to(s.dtype)
        return s + (1.0 - m[:, :, None] * m[:, None]) * b + future(s.dtype, a)

    return run


def given(number):
    """A mask that is data, beside one of the graph."""
    return lambda s, keep, bias: s + bias.to(s.dtype) + padding(keep, number, s.dtype)


def twice(s, keep, bias):
    """Two masks that are data."""
    return s + (bias.to(s.dtype) + bias.to(s.dtype).roll(1, 0))


def scaled(a, b):
    """The temperature behind the masks."""
    return lambda s, keep, bias: (s * 2 + future(s.dtype, a) + padding(keep, b, s.dtype)) / 2


def infinite(s, keep, bias):
    mask = torch.zeros(SAMPLES, 1, LENGTH, dtype=s.dtype).masked_fill(keep[:, None] == 0, -INF)
    return s + (future(s.dtype, -INF) + mask)


WAYS = {
    "halves": added(MIN / 2, MIN / 2),
    "quarters_together": together(MIN / 4, MIN / 4),
    "min_and_half": together(MIN, MIN / 2),
    "add_1e9": added(-1e9, -1e9),
    "add_1e4": added(-1e4, -1e4),
    "add_1e4_1e9": together(-1e4, -1e9),
    "least_of_f16": together(-65504.0, -65504.0),
    "choose_min": chosen(MIN, MIN),
    "choose_1e9": chosen(-1e9, -1e9),
    "choose_1e4": chosen(-1e4, -1e4),
    "choose_1e3": chosen(-1e3, -1e3),
    "choose_both": both_chosen(-1e4, MIN / 2),
    "nested": nested(-1e4, -1e4),
    "nested_halves": nested(MIN / 2, MIN / 2),
    "least": least(-1e4, -1e5),
    "parts": of_parts(MIN / 2, MIN / 2),
    "sliced": sliced(-1e4, -1e4),
    "products": of_products(-1e4, -1e4),
    "given": given(-1e4),
    "given_half": given(MIN / 2),
    "twice": twice,
    "scaled": scaled(-1e4, -1e4),
}
OPEN = {"infinite": infinite, "choose_infinite": chosen(-INF, -1e9)}


class Net(nn.Module):
    """Every way in two branches of its own: attention, and probabilities that something else reads first."""

    def __init__(self, ways):
        super().__init__()
        self.ways = ways
        for part in "qkv":
            names = [n + side for n in ways for side in ("", "_read")]
            layers = {n: nn.Linear(WIDTH, WIDTH, bias=part == "v") for n in names}
            setattr(self, part, nn.ModuleDict(layers))
        self.head = nn.Linear(2 * WIDTH * len(ways), 5)

    def forward(self, x, keep, bias):
        parts = []
        for name, way in self.ways.items():
            for side in ("", "_read"):
                q, k, v = 3 * self.q[name + side](x), self.k[name + side](x), self.v[name + side](x)
                # Under autocast a product is narrow; masks in f32 make f32 of it.
                s = (q @ k.transpose(-1, -2) / WIDTH**0.5).to(x.dtype)
                s = rounded(way(s, keep, bias))
                p = s.softmax(-1)
                p = torch.tanh(p) if side else p
                parts.append(torch.tanh(p @ v).mean(1))
        return self.head(torch.cat(parts, 1))


def gradients(net, data, t, dtype, autocast=None):
    net = net.to(dtype)
    net.zero_grad()
    x, keep, bias = data
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        y = net(x.to(dtype), keep, bias)
    loss = F.cross_entropy(y.to(dtype), t)
    loss.backward()
    found = {n: p.grad.double().clone() for n, p in net.named_parameters()}
    net.float()
    return loss.item(), found


def main():
    warnings.filterwarnings("ignore")
    os.makedirs(OUT, exist_ok=True)
    torch.set_num_threads(1)
    reference = {}
    for kind, file in (("full", "batch"), ("open", "open")):
        torch.manual_seed(1234)
        net = Net(WAYS | OPEN if kind == "open" else WAYS).train()
        x, t = torch.randn(SAMPLES, LENGTH, WIDTH), torch.randint(0, 5, (SAMPLES,))
        keep = torch.ones(SAMPLES, LENGTH, dtype=torch.int64)
        keep[0, 4:] = 0  # padding at the right
        if kind == "full":
            keep[1, :3] = 0  # at the left: what comes first sees nothing
            keep[2] = 0  # nothing but padding
        bias = future(torch.float32, MIN / 2)[None].repeat(SAMPLES, 1, 1)
        bias[3, 5, 2:4] = MIN / 2
        data = (x, keep, bias)
        loss, exact = gradients(net, data, t, torch.float64)
        assert all(g.isfinite().all() for g in exact.values())
        reference[f"{kind}.loss.f64"] = torch.tensor([loss], dtype=torch.float64)
        for n, g in exact.items():
            reference[f"{kind}.grad.{n}"] = g.contiguous()
        formats = {"f32": None, "bf16": torch.bfloat16, "f16": torch.float16}
        for format, dtype in formats.items():
            _, found = gradients(net, data, t, torch.float32, dtype)
            far = {n: (found[n] - g).norm() / g.norm() for n, g in exact.items()}
            worst = max(far, key=far.get)
            print(f"{kind} {format}: PyTorch is at most {far[worst]:.1e} away, in {worst}")
            for n, d in far.items():
                reference[f"{kind}.far.{format}.{n}"] = d.reshape(1)
        names = ["x", "keep", "bias"]
        torch.onnx.export(
            net, data, os.path.join(OUT, f"{kind}.onnx"), dynamo=False, opset_version=17,
            training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False,
            input_names=names, output_names=["logits"])  # fmt: skip
        batch = {f"in.{n}": v for n, v in zip(names, data)} | {"tgt.targets": t}
        save_file(batch, os.path.join(OUT, f"{file}.safetensors"))
    save_file(reference, os.path.join(OUT, "reference.safetensors"))


if __name__ == "__main__":
    main()
