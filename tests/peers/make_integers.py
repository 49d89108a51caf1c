"""Writes tests/fixtures/integers: reductions of integers and bools of the data, sums at repeated indices, losses inside the model,
scattered extrema and products, folds, affine grids and Fourier transforms, in branches of one network
whose targets are probabilities, with gradients in f64.

    python3 tests/peers/make_integers.py

The form is that of the other fixtures (tests/fixtures/README.md); weights are inside the graphs. The last
two columns of the input hold integers: classes, and an order of the steps. `model.onnx` is the TorchScript
exporter's and has the branches that it can write, `model_dynamo.onnx` has all; the reference's names begin
with `ts.` and `dynamo.`.
"""

import os

import onnx
import torch
from fixture import gradients, save
from torch import nn
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "fixtures", "integers")
BATCH, STEPS, WIDTH, OUTPUTS = 3, 6, 4, 7
# Beyond what f32 holds exactly, with sums that 32 bits hold.
BIG, OFFSET = 16_777_259, 33_554_467


def part(n):
    """What is left of an integer, as a share: one in the last place is seen."""
    return ((n % 1000).double() / 1000).float()


def lengths(h, ids, order):
    return h * ids.ne(0).sum(1).float()[:, None, None] / STEPS


def masked_mean(h, ids, order):
    mask = ids > 1
    return ((h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))[:, None] + h


def any_all(h, ids, order):
    some, every = (ids > 3).any(1, keepdim=True), (order > 0).all(1, keepdim=True)
    return torch.where(some[..., None], h, h * 0.5) + every[..., None] * h + (ids >= 0).all()


def exact_sums(h, ids, order):
    big = ids * BIG - OFFSET
    return h * part(big.sum(1))[:, None, None] + h * part(big.sum()) - h.sin() * part(big.sum((0, 1)))


def exact_extrema(h, ids, order):
    big = (ids - 2) * BIG + order
    highest, lowest = big.max(1).values, big.min(1).values
    return h * part(highest)[:, None, None] + h.sin() * part(lowest)[:, None, None] + part(big.max())


def products(h, ids, order):
    return h * part(ids.clamp(min=1).prod(1, keepdim=True))[..., None] + h * (ids > 0).int().prod(1)[:, None, None]


def positions(h, ids, order):
    return h * (ids != 1).cumsum(1)[..., None] / STEPS


def bytes_summed(h, ids, order):
    b = ids.to(torch.uint8)
    wide = ids * 1000 - 1500
    narrow = part(wide.to(torch.uint8).long()) + part(wide.to(torch.int8).long() + 128)
    return h * b.sum(1)[:, None, None] / STEPS + h * b.max() + h * narrow[..., None]


def counted(h, ids, order):
    ones = torch.ones_like(ids)
    counts = torch.zeros(BATCH, WIDTH + 1, dtype=torch.long).scatter_add(1, ids, ones)
    sums = torch.zeros(BATCH, WIDTH + 1, dtype=torch.long).scatter_add(1, ids, ids * BIG - OFFSET)
    return h * counts[:, None, :WIDTH] + h * part(sums[:, None, 1:])


def added(h, ids, order):
    y = h.index_add(1, ids[0].clamp(max=2), h.sin())
    rows = torch.arange(BATCH)[:, None].expand(-1, STEPS)
    return y.index_put((rows, ids.clamp(max=3)), h.cos(), accumulate=True)


def repeated(h, ids, order):
    y = h[:, :, None, None].expand(BATCH, STEPS, 2, 3, WIDTH).repeat_interleave(2, 2)
    return y.sin().sum((2, 3))


def bags(h, ids, order):
    at = ids.clamp(max=3)
    sums = F.embedding_bag(at, h[0, :4], mode="sum") + F.embedding_bag(at, h[1, :4], mode="mean")
    return h * sums[:, None] + F.local_response_norm(h, 3)


def losses(h, ids, order):
    t = ids.clamp(max=WIDTH - 1)
    w = torch.tensor([0.5, 1.5, 2.0, 0.25])
    scores = h.transpose(1, 2)
    a = F.cross_entropy(scores, t, weight=w, ignore_index=1)
    b = F.cross_entropy(scores, t, weight=w, reduction="none")
    c = F.nll_loss(F.log_softmax(scores, 1), t, weight=w, ignore_index=2)
    d = F.cross_entropy(h[:, 0], t[:, 0], ignore_index=3, reduction="sum")
    return h * (a + c) + b[..., None] * h.sin() + d


def likelihoods(h, ids, order):
    t = ids.clamp(max=WIDTH - 1)
    w = torch.tensor([0.5, 1.5, 2.0, 0.25])
    scores = h.transpose(1, 2)
    rows = F.nll_loss(scores, t, weight=w, ignore_index=2, reduction="none")
    return rows[..., None] + h * F.nll_loss(scores, t) + h * F.nll_loss(h[:, 1].log_softmax(1), t[:, 1])


def smoothed(h, ids, order):
    t = ids.clamp(max=WIDTH - 1)
    return h * F.cross_entropy(h.transpose(1, 2), t, ignore_index=2, label_smoothing=0.1)


def scattered_extrema(h, ids, order):
    index = ids.clamp(max=2)[..., None].expand(-1, -1, WIDTH)
    y = 0
    for reduce, rows in (("amax", h), ("amin", h), ("prod", h + 1.5), ("amax", h.round())):
        y = y + rows.sin().scatter_reduce(1, index, rows, reduce)
    return y


def scattered_integers(h, ids, order):
    big = ids * BIG - OFFSET + order
    found = big.scatter_reduce(1, ids.clamp(max=2), big.flip(1), "amax")
    return h * part(found)[..., None] + h * part(~big)[..., None]


def folded(h, ids, order):
    columns = h.transpose(1, 2).reshape(BATCH, 4, 6)
    image = F.fold(columns, (3, 4), 2)
    apart = F.fold(h.reshape(BATCH, 12, 2), (3, 4), (2, 3), dilation=(2, 1), stride=(1, 1), padding=(0, 0))
    return image.reshape(BATCH, -1)[:, :WIDTH, None] * h[:, :WIDTH] + apart.mean((1, 2, 3))[:, None, None]


def grids(h, ids, order):
    theta = h[:, :3, :2].transpose(1, 2) * 0.3 + torch.eye(2, 3)
    image = torch.einsum("bic,bjc->bcij", h, h)
    y = 0
    for align in (False, True):
        grid = F.affine_grid(theta, [BATCH, WIDTH, STEPS, 5], align_corners=align)
        y = y + F.grid_sample(image, grid, align_corners=align)
    return y.mean(3).transpose(1, 2)


def waves(h, ids, order):
    mixed = torch.fft.fftn(h, dim=(1, 2)).real
    half = torch.fft.rfft(h, dim=1)
    power = half.real.square() + half.imag.square()
    back = torch.fft.irfft(half * 0.5, n=STEPS, dim=1)
    return mixed * 0.1 + power.mean(1, keepdim=True) + back


SHARED = (
    lengths, masked_mean, any_all, exact_sums, exact_extrema, products, positions, bytes_summed, counted,
    added, repeated, bags, losses, scattered_extrema,
)  # fmt: skip
ONLY_DYNAMO = (
    likelihoods, smoothed, scattered_integers, folded, grids, waves,
)  # fmt: skip


class Net(nn.Module):
    """Every operator in a branch of its own, so that no fault hides behind another."""

    def __init__(self, branches):
        super().__init__()
        self.branches = {f.__name__: f for f in branches}
        self.linear = nn.ModuleDict({n: nn.Linear(WIDTH, WIDTH) for n in self.branches})
        self.head = nn.Linear(WIDTH * len(self.branches), OUTPUTS)

    def forward(self, x):
        ids, order = x[..., WIDTH].long(), x[..., WIDTH + 1].long()
        parts = []
        for name, branch in self.branches.items():
            h = torch.tanh(self.linear[name](x[..., :WIDTH]))
            parts.append(torch.tanh(branch(h, ids, order).to(h.dtype)).mean(1))
        return self.head(torch.cat(parts, 1))


def loss_of(net, x, t, dtype):
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    loss = F.cross_entropy(net(x.to(dtype)), t.to(dtype))
    torch.set_default_dtype(previous)
    return loss


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(1234)
    order = torch.stack([torch.randperm(STEPS) for _ in range(BATCH)])
    ids = torch.randint(0, WIDTH + 1, (BATCH, STEPS))
    x = torch.cat([torch.randn(BATCH, STEPS, WIDTH), ids[..., None], order[..., None]], -1)
    t = torch.rand(BATCH, OUTPUTS).softmax(-1)
    reference = {}
    for prefix, file, branches in (
        ("ts", "model.onnx", SHARED), ("dynamo", "model_dynamo.onnx", SHARED + ONLY_DYNAMO),
    ):  # fmt: skip
        net = Net(branches).train()
        path = os.path.join(OUT, file)
        names = {"input_names": ["x"], "output_names": ["logits"]}
        if prefix == "ts":
            torch.onnx.export(
                net, (x,), path, dynamo=False, opset_version=18, do_constant_folding=False,
                training=torch.onnx.TrainingMode.TRAINING, **names,
            )  # fmt: skip
        else:
            torch.onnx.export(
                net, (x,), path, dynamo=True, optimize=False, opset_version=20, external_data=False,
                verbose=False, **names,
            )  # fmt: skip
            # Of what the exporter notes, what is read: label smoothing, and which maximum it was.
            noted = ("SoftmaxCrossEntropyLoss", "ReduceMax", "ReduceMin")
            model = onnx.load(path)
            for node in model.graph.node:
                kept = [
                    p for p in node.metadata_props
                    if p.key == "pkg.torch.onnx.fx_node" and node.op_type in noted
                ]  # fmt: skip
                del node.metadata_props[:]
                node.metadata_props.extend(kept)
            onnx.save(model, path)
        of = {
            d: gradients(net, lambda net, d=d: loss_of(net, x, t, d), d)
            for d in (torch.float64, torch.float32)
        }
        (loss, exact), (_, single) = of[torch.float64], of[torch.float32]
        for n, g in exact.items():
            far = (single[n] - g).norm() / g.norm()
            assert far < 1e-5, (prefix, n, far)
            reference[f"{prefix}.grad.{n}"] = g
        reference[f"{prefix}.loss.f64"] = torch.tensor([loss], dtype=torch.float64)
    save(OUT, x, t, reference)


if __name__ == "__main__":
    main()
