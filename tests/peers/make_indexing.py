"""Writes tests/fixtures/indexing: operators that index, scatter, sort, cumulate and select by values of
the model, in branches of one network whose targets are probabilities, with gradients in f64.

    python3 tests/peers/make_indexing.py

The form is that of the other fixtures (tests/fixtures/README.md); weights are inside the graph. The last
two columns of the input hold integers: classes, and an order of the steps.
"""

import os

import torch
from fixture import gradients, reference, save
from torch import nn
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "fixtures", "indexing")
BATCH, STEPS, WIDTH, CLASSES, OUTPUTS = 3, 6, 4, 5, 7


def gathered(h, ids, order, p):
    rows = torch.gather(h, 1, order[..., None].expand(-1, -1, WIDTH))
    return rows * p + torch.gather(h, 2, order.clamp(max=WIDTH - 1)[..., None].expand(-1, -1, WIDTH))


def gathered_tuples(h, ids, order, p):
    return h[torch.arange(BATCH)[:, None], order] * p


def scattered(h, ids, order, p):
    index = order[:, :4, None].expand(-1, -1, WIDTH)
    return h.scatter(1, index, (h * p)[:, :4])


def scattered_sums(h, ids, order, p):
    index = order.clamp(max=2)[..., None].expand(-1, -1, WIDTH)
    return (h + p).scatter_add(1, index, torch.sin(h))


def assigned(h, ids, order, p):
    y = h * p
    y[:, 1:4] = torch.cos(h[:, :3])
    y = y.clone()
    y[torch.arange(BATCH), order[:, 0]] = h[:, 2]
    return y


def running(h, ids, order, p):
    return torch.cumsum(h * p, 1) + torch.cumsum(h, 2).tanh()


def largest(h, ids, order, p):
    top, at = (h * p).topk(3, -1)
    low, _ = h.topk(2, 1, largest=False)
    weights = torch.zeros_like(h).scatter(2, at, top.softmax(-1))
    return weights * h + low.sum(1, keepdim=True)


def chosen(h, ids, order, p):
    hot = F.one_hot(ids, WIDTH + 1).to(h.dtype)[..., :WIDTH]
    best = F.one_hot(h.argmax(-1), WIDTH).to(h.dtype)
    last = h[torch.arange(BATCH), h[..., 0].argmin(1)]
    return hot * h + best * p + last[:, None]


def triangles(h, ids, order, p):
    scores = (h * p) @ h.transpose(1, 2)
    return torch.tril(scores, 1) @ h + torch.triu(scores, -1).sum(-1, keepdim=True)


def padded(h, ids, order, p):
    t = (h * p).transpose(1, 2)
    y = F.pad(t, (2, 1), "reflect") * 2 + F.pad(t, (1, 2), "replicate") + F.pad(t, (0, 3), "circular")
    return y[..., :STEPS].transpose(1, 2) + y[..., 3:].transpose(1, 2).sin()


def sums(h, ids, order, p):
    g = h * p
    y = torch.einsum("bid,bjd->bij", g, h)
    y = torch.einsum("bij,bjd->bid", y, h) + torch.einsum("bid,d,bjd->bi", h, h[0, 0], g)[..., None]
    y = y + torch.einsum("...id,de->...ie", h, torch.einsum("bid,bie->de", g, h))
    diagonal = torch.einsum("bii->bi", h[:, :WIDTH])
    return y + torch.einsum("bi,bj->b", diagonal, g[:, 0])[:, None, None]


def sampled(h, ids, order, p):
    grid = torch.stack([h[..., :2], h[..., 2:] * 1.5], 1) * p.mean()
    image = torch.einsum("bic,bjc->bcij", h, h)
    y = 0
    for mode, padding, align in (
        ("bilinear", "zeros", False), ("bilinear", "border", True), ("bilinear", "reflection", False),
        ("bilinear", "reflection", True), ("nearest", "border", False), ("bicubic", "zeros", True),
        ("bicubic", "reflection", False),
    ):  # fmt: skip
        y = y + F.grid_sample(image, grid, mode, padding, align)
    return y.mean(2).transpose(1, 2)


BRANCHES = {
    f.__name__: f
    for f in (
        gathered, gathered_tuples, scattered, scattered_sums, assigned, running, largest, chosen,
        triangles, padded, sums, sampled,
    )
}  # fmt: skip


class Net(nn.Module):
    """Every operator in a branch of its own, so that no fault hides behind another."""

    def __init__(self):
        super().__init__()
        self.linear = nn.ModuleDict({n: nn.Linear(WIDTH, WIDTH) for n in BRANCHES})
        self.factor = nn.ParameterDict({n: nn.Parameter(torch.rand(WIDTH) + 0.5) for n in BRANCHES})
        self.place = nn.Embedding(STEPS + 1, WIDTH)
        self.head = nn.Linear(WIDTH * (len(BRANCHES) + 1), OUTPUTS)

    def forward(self, x):
        ids, order = x[..., WIDTH].long(), x[..., WIDTH + 1].long()
        parts = []
        for name, branch in BRANCHES.items():
            h = torch.tanh(self.linear[name](x[..., :WIDTH]))
            parts.append(torch.tanh(branch(h, ids, order, self.factor[name])).mean(1))
        # Positions as RoBERTa's, from the classes that are not the first.
        mask = (ids != 0).int()
        places = (torch.cumsum(mask, 1) * mask).long()
        parts.append(self.place(places).tanh().mean(1))
        return self.head(torch.cat(parts, 1))


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(1234)
    net = Net().train()
    order = torch.stack([torch.randperm(STEPS) for _ in range(BATCH)])
    ids = torch.randint(0, WIDTH + 1, (BATCH, STEPS))
    x = torch.cat([torch.randn(BATCH, STEPS, WIDTH), ids[..., None], order[..., None]], -1)
    t = torch.rand(BATCH, OUTPUTS).softmax(-1)
    def of(dtype):
        return gradients(net, lambda net: F.cross_entropy(net(x.to(dtype)), t.to(dtype)), dtype)

    loss, exact = of(torch.float64)
    _, single = of(torch.float32)
    far = max(float((single[n] - g).norm() / g.norm()) for n, g in exact.items())
    print(f"loss {loss}, {len(exact)} gradients, f32 within {far:.1e}")
    torch.onnx.export(
        net, (x,), os.path.join(OUT, "model.onnx"), dynamo=False, opset_version=17,
        training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False, input_names=["x"],
        output_names=["logits"])  # fmt: skip
    save(OUT, x, t, reference(loss, exact))


if __name__ == "__main__":
    main()
