"""Writes tests/fixtures/exported: what PyTorch's exporters write otherwise than the module has it, and what
is read as the module has it, from the exporter's notes or the form of the graph. Gradients in f64.

    python3 tests/peers/make_exported.py

The form is that of the other fixtures (tests/fixtures/README.md); weights are inside the graphs. The last
two columns of the input hold integers. `model.onnx` is the TorchScript exporter's and has the branches that
it can write, `model_dynamo.onnx` has all; the reference's names begin with `ts.` and `dynamo.`.
`bags.onnx` has bags whose offsets are
data; `similarity.onnx` a cosine that is written out as the TorchScript exporter writes another; `complement.onnx`
`torch.erfc`; `means.onnx` a mean of integers by a scatter; `unread.onnx` has an input that nothing reads; `rounding.onnx` has a `//` of integers, which the TorchScript exporter writes as another division.
"""

import os

import onnx
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "fixtures", "exported")
BATCH, STEPS, WIDTH, OUTPUTS = 3, 6, 4, 5


def part(n):
    return (n.double() / 300).to(torch.get_default_dtype())[..., None]


def keep(ids):
    """The first query of every sample has no key."""
    keep = (ids[:, None] > 0) | torch.eye(STEPS, dtype=torch.bool)
    return keep & (torch.arange(STEPS) > 0)[:, None]


def attention_bool(h, ids, order):
    q = h[:, None]
    return F.scaled_dot_product_attention(q, q.sin(), q.cos(), keep(ids)[:, None])[:, 0]


def attention_float(h, ids, order):
    mask = torch.zeros(BATCH, STEPS, STEPS, dtype=h.dtype).masked_fill(~keep(ids), -torch.inf)
    q = h[:, None]
    return F.scaled_dot_product_attention(q, q.sin(), q.cos(), mask[:, None])[:, 0]


def bytes_wrap(h, ids, order):
    a, b = (ids * 50 + 40).to(torch.uint8), (order * 45).to(torch.uint8)
    return h * part(a + b) + h.sin() * part(a - b) + h.cos() * part(a * b) + h * part((a + b) // 2)


def shorts_wrap(h, ids, order):
    a, b = (ids * 25 - 30).to(torch.int8), (order * 20 + 10).to(torch.int8)
    c = (ids * 7000 - 9000).to(torch.int16)
    return h * part(a + b) + h.sin() * part(a * b) + h.cos() * part(torch.div(c * 3, 128, rounding_mode="floor")) + h * part(-a)


def empty_bags(h, ids, order):
    at, offsets = ids.flatten()[:7], torch.tensor([0, 2, 2, 7])
    most = F.embedding_bag(at, h[0, :5], offsets, mode="max")
    mean = F.embedding_bag(at, h[1, :5], offsets, mode="mean")
    return h[:, :4] * most + mean.sin()


def distances(h, ids, order):
    other = h.flip(1).sin()
    return h * (F.pairwise_distance(h, other, 1.0, 0.1, True) + F.pairwise_distance(h, other, 2.0, 0.1, True))


def probabilities(h, ids, order):
    target = F.one_hot(ids.clamp(max=3), WIDTH).to(h.dtype) * 0.7 + 0.075
    return h * F.cross_entropy(h.transpose(1, 2), target.transpose(1, 2)) + h.sin() * F.cross_entropy(
        h[:, 0], target[:, 1], weight=torch.tensor([0.5, 1.5, 2.0, 0.25], dtype=h.dtype), reduction="sum")


def means(h, ids, order):
    index = ids.clamp(max=3)[..., None].expand(-1, -1, WIDTH)
    own = h.sin().scatter_reduce(1, index, h, "mean")
    return own + h.cos().scatter_reduce(1, index, h, "mean", include_self=False)


def pooled(h, ids, order):
    image = h[:, None]
    a = F.avg_pool2d(image, 3, 1, 1, divisor_override=4)
    b = F.avg_pool2d(image, 2, 2, 1, True, False, 3)
    return a[:, 0] + b.mean((1, 2, 3))[:, None, None] * h


def smoothed_by_class(h, ids, order):
    w = torch.tensor([0.5, 1.5, 2.0, 0.25], dtype=h.dtype)
    return h * F.cross_entropy(h.transpose(1, 2), ids.clamp(max=3), w, ignore_index=2, label_smoothing=0.2)


def by_frequency(h, ids, order):
    return F.embedding(ids, h[0, :5], scale_grad_by_freq=True) * h.cos()


SHARED = (attention_bool, attention_float, bytes_wrap, shorts_wrap, empty_bags, distances, probabilities)
ONLY_DYNAMO = (means, pooled, smoothed_by_class, by_frequency)


class Net(nn.Module):
    """Everything in a branch of its own, so that no fault hides behind another."""

    def __init__(self, branches):
        super().__init__()
        self.branches = {f.__name__: f for f in branches}
        self.linear = nn.ModuleDict({n: nn.Linear(WIDTH, WIDTH) for n in self.branches})
        self.norm = nn.InstanceNorm1d(WIDTH, track_running_stats=True)
        self.head = nn.Linear(WIDTH * len(self.branches), OUTPUTS)

    def forward(self, x):
        ids, order = x[..., WIDTH].long(), x[..., WIDTH + 1].long()
        x = self.norm(x[..., :WIDTH].transpose(1, 2)).transpose(1, 2)
        parts = []
        for name, branch in self.branches.items():
            h = torch.tanh(self.linear[name](x))
            parts.append(torch.tanh(branch(h, ids, order)).mean(1))
        return self.head(torch.cat(parts, 1))


class Rounding(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, OUTPUTS)

    def forward(self, x):
        ids = x[..., WIDTH].long()
        # The first is never negative; the third has its correction in the file.
        shares = ids.abs() // 2 + (ids - 3) // 2 + torch.div(ids - 3, 2, rounding_mode="floor")
        return self.fc(torch.stack([shares.sum(1), ids.sum(1)], -1).float())


class Similarity(nn.Module):
    """As F.cosine_similarity is exported, with a floor of its own."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y = self.fc(x)
        norms = torch.sqrt((y * y).sum(-1) * (x * x).sum(-1))
        return x * ((y * x).sum(-1) / torch.max(norms, torch.tensor([1.0])))[:, None]


class Complement(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return torch.erfc(self.fc(x))


class Means(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, ids):
        table = torch.zeros(4, dtype=torch.int64)
        return self.fc(x) * table.scatter_reduce(0, ids, ids * 3 - 4, "mean", include_self=False)


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.EmbeddingBag(9, OUTPUTS)

    def forward(self, ids, offsets):
        return self.e(ids, offsets)


class Unread(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, OUTPUTS)

    def forward(self, x, mask):
        return self.fc(x)


def gradients(net, x, t, dtype):
    net = net.to(dtype)
    net.zero_grad()
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(net(x.to(dtype)), t.to(dtype))
        torch.set_default_dtype(previous)
        loss.backward()
    found = {n: p.grad.double().clone() for n, p in net.named_parameters()}
    net.float()
    return loss.item(), found


def scripted(net, x, file):
    torch.onnx.export(
        net, (x,), os.path.join(OUT, file), dynamo=False, opset_version=18, do_constant_folding=False,
        training=torch.onnx.TrainingMode.TRAINING, input_names=["x"], output_names=["logits"],
    )  # fmt: skip


def only_calls(path):
    """Leaves of the exporter's notes the calls, and not where the files lay."""
    model = onnx.load(path)
    for node in every_node(model.graph):
        kept = [p for p in node.metadata_props if p.key == "pkg.torch.onnx.fx_node"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


def programmed(net, inputs, names, file):
    torch.onnx.export(
        net.train(), inputs, os.path.join(OUT, file), dynamo=True, optimize=False, opset_version=18,
        external_data=False, verbose=False, input_names=names, output_names=["logits"],
    )  # fmt: skip
    only_calls(os.path.join(OUT, file))


def told():
    """Graphs of which something is said."""
    scripted(Rounding().train(), torch.zeros(BATCH, STEPS, WIDTH + 2), "rounding.onnx")
    scripted(Similarity().train(), torch.ones(3, 4), "similarity.onnx")
    programmed(Complement(), (torch.zeros(3, 4),), ["x"], "complement.onnx")
    programmed(Means(), (torch.zeros(3, 4), torch.tensor([0, 0, 1, 3])), ["x", "ids"], "means.onnx")


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(1234)
    order = torch.stack([torch.randperm(STEPS) for _ in range(BATCH)])
    ids = torch.randint(0, WIDTH + 1, (BATCH, STEPS))
    x = torch.cat([torch.randn(BATCH, STEPS, WIDTH), ids[..., None], order[..., None]], -1)
    t = torch.rand(BATCH, OUTPUTS).softmax(-1)
    reference = {}
    for prefix, branches in (("ts", SHARED), ("dynamo", SHARED + ONLY_DYNAMO)):
        net = Net(branches).train()
        if prefix == "ts":
            scripted(net, x, "model.onnx")
        else:
            path = os.path.join(OUT, "model_dynamo.onnx")
            torch.onnx.export(
                net, (x,), path, dynamo=True, optimize=False, opset_version=18, external_data=False,
                verbose=False, input_names=["x"], output_names=["logits"],
            )  # fmt: skip
            only_calls(path)
        loss, exact = gradients(net, x, t, torch.float64)
        _, single = gradients(net, x, t, torch.float32)
        for n, g in exact.items():
            far = (single[n] - g).norm() / g.norm()
            assert far < 1e-4, (prefix, n, far)
            reference[f"{prefix}.grad.{n}"] = g
        reference[f"{prefix}.loss.f64"] = torch.tensor([loss], dtype=torch.float64)
    save_file(reference, os.path.join(OUT, "reference.safetensors"))
    save_file({"in.x": x, "tgt.targets": t}, os.path.join(OUT, "batch.safetensors"))
    told()
    torch.onnx.export(
        Bags().train(), (torch.arange(6), torch.tensor([0, 2, 3])), os.path.join(OUT, "bags.onnx"), dynamo=False,
        opset_version=18, training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False,
        input_names=["ids", "offsets"], output_names=["logits"],
    )  # fmt: skip
    torch.onnx.export(
        Unread(), (torch.zeros(2, 4), torch.zeros(2, 4)), os.path.join(OUT, "unread.onnx"), dynamo=True,
        optimize=False, opset_version=18, external_data=False, verbose=False, input_names=["x", "mask"],
        output_names=["logits"],
    )  # fmt: skip
    only_calls(os.path.join(OUT, "unread.onnx"))


def every_node(graph):
    for node in graph.node:
        yield node
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                yield from every_node(a.g)


if __name__ == "__main__":
    main()
