"""Writes tests/fixtures/masks: attention under each way of hiding keys, one sample of which has none
left, with gradients in f64. (The torch.export exporter writes bool masks with the most negative f32 in
the place of minus infinity, another function on rows without keys.)

    python3 tests/peers/make_masks.py

The form is that of the other fixtures (tests/fixtures/README.md); weights are inside the graphs. Which
keys count follows from the first channel of x, so that masks are made in the graph.
"""

import os

import torch
from fixture import reference, save
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "fixtures", "masks")
MIN = torch.finfo(torch.float32).min
SAMPLES, LENGTH, WIDTH, HEADS = 4, 6, 8, 2


def chosen(fill):
    """Scores of keys that do not count are `fill`."""
    return lambda q, k, v, keep, exact: scores(q, k).masked_fill(~keep[:, None], fill).softmax(-1) @ v


def added(number):
    """`number` is added to them; beside the most negative f32 nothing is left of a score."""

    def run(q, k, v, keep, exact):
        mask = (1.0 - keep[:, None].to(q.dtype)) * number
        return (scores(q, k) + mask).softmax(-1) @ v

    return run


def scores(q, k):
    return q @ k.transpose(-1, -2) / WIDTH**0.5


def sdpa(mask):
    def run(q, k, v, keep, exact):
        q, k, v = [x.view(SAMPLES, LENGTH, HEADS, -1).transpose(1, 2) for x in (q, k, v)]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask(keep[:, None, None], q.dtype))
        return y.transpose(1, 2).reshape(SAMPLES, LENGTH, WIDTH)

    return run


def future():
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)


def both(q, k, v, keep, exact):
    """Causality chosen, padding added: where both hide, the sum is minus infinity."""
    s = scores(q, k).masked_fill(future(), MIN)
    return (s + (1.0 - keep[:, None].to(q.dtype)) * MIN).softmax(-1) @ v


def guarded(q, k, v, keep, exact):
    """Probabilities that something else reads first. PyTorch's own gradient of the guard is NaN."""
    s = scores(q, k)
    some = keep[:, None].any(-1, keepdim=True)
    if exact:
        p = s.masked_fill(~keep[:, None] & some, -torch.inf).softmax(-1) * some
    else:
        p = s.masked_fill(~keep[:, None], -torch.inf).softmax(-1)
        p = torch.where(p.isnan(), 0.0, p)
    return torch.tanh(p) @ v


WAYS = {
    "choose_min": chosen(MIN),
    "choose_1e9": chosen(-1e9),
    "choose_1e4": chosen(-1e4),
    "choose_1e3": chosen(-1e3),
    "add_min": added(MIN),
    "sdpa_bool": sdpa(lambda keep, dtype: keep),
    "sdpa_causal": sdpa(lambda keep, dtype: keep & ~future()),
    "sdpa_float": sdpa(lambda keep, dtype: (~keep).to(dtype) * MIN),
    "both": both,
    "guarded": guarded,
}


class Net(nn.Module):
    """Every way in a branch of its own, so that no fault hides behind another."""

    def __init__(self):
        super().__init__()
        for part in "qkv":
            ways = {n: nn.Linear(WIDTH, WIDTH, bias=part == "v") for n in WAYS}
            setattr(self, part, nn.ModuleDict(ways))
        self.head = nn.Linear(WIDTH * len(WAYS), 5)
        self.exact = False

    def forward(self, x):
        keep = x[:, :, 0] > 0
        parts = []
        for name, way in WAYS.items():
            q, k, v = 3 * self.q[name](x), self.k[name](x), self.v[name](x)
            parts.append(torch.tanh(way(q, k, v, keep, self.exact)).mean(1))
        return self.head(torch.cat(parts, 1))


def gradients(net, x, t, dtype):
    net = net.to(dtype)
    net.zero_grad()
    # The fused kernels of PyTorch's CPU lose the logarithm of a row's sum beside large numbers.
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(net(x.to(dtype)), t)
        loss.backward()
    found = {n: p.grad.double().clone() for n, p in net.named_parameters()}
    net.float()
    return loss.item(), found


def long_sequences(path):
    """Causal attention of any number of positions, by ONNX's operator and as PyTorch's exporters write it."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes, generator = [], torch.Generator().manual_seed(1)

    def weight(name, *shape):
        return numpy_helper.from_array((torch.randn(shape, generator=generator) * 0.5).numpy(), name)

    def constant(name, value):
        return numpy_helper.from_array(torch.tensor(value).numpy(), name)

    def op(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))

    for part in "qkv":
        op("MatMul", ["x", f"{part}.weight"], part)
    op("Attention", list("qkv"), "whole", is_causal=1, q_num_heads=1, kv_num_heads=1)
    op("Shape", ["x"], "t", start=1, end=2)
    op("Concat", ["t", "t"], "square", axis=0)
    op("Expand", ["one", "square"], "ones")
    op("Trilu", ["ones"], "lower", upper=0)
    op("Equal", ["lower", "zero"], "future")
    op("Where", ["future", "never", "zero"], "mask")
    op("Transpose", ["k"], "kt", perm=[0, 2, 1])
    op("MatMul", ["q", "kt"], "product")
    op("Mul", ["product", "scale"], "scores")
    op("Add", ["scores", "mask"], "masked")
    op("Softmax", ["masked"], "p", axis=-1)
    op("MatMul", ["p", "v"], "parts")
    op("Add", ["whole", "parts"], "both")
    op("ReduceMean", ["both", "axes"], "mean", keepdims=0)
    op("MatMul", ["mean", "head.weight"], "logits")
    weights = [weight(f"{part}.weight", WIDTH, WIDTH) for part in "qkv"] + [weight("head.weight", WIDTH, 5)]
    numbers = {"one": 1.0, "zero": 0.0, "never": -torch.inf, "scale": WIDTH**-0.5, "axes": [1]}
    # Initializers of reals would be parameters.
    constants = [helper.make_node("Constant", [], [n], name=n, value=constant(n, x)) for n, x in numbers.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "t", WIDTH])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])
    graph = helper.make_graph(constants + nodes, "long", [x], [logits], weights)
    opsets = [helper.make_opsetid("", 23)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(1234)
    net = Net().train()
    x, t = torch.randn(SAMPLES, LENGTH, WIDTH), torch.randint(0, 5, (SAMPLES,))
    x[:, :, 0] = x[:, :, 0].abs()
    x[1, :3, 0] *= -1  # padding at the left
    x[2, :, 0] *= -1  # nothing but padding
    net.exact = True
    loss, exact = gradients(net, x, t, torch.float64)
    _, single = gradients(net, x, t, torch.float32)
    worst = max(float((single[n] - g).norm() / g.norm()) for n, g in exact.items())
    print(f"PyTorch in f32 is at most {worst:.1e} away")
    net.exact = False
    names = {"input_names": ["x"], "output_names": ["logits"]}
    torch.onnx.export(
        net, (x,), os.path.join(OUT, "model.onnx"), dynamo=False, opset_version=17,
        training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False, **names)  # fmt: skip
    long_sequences(os.path.join(OUT, "long.onnx"))
    save(OUT, x, t, reference(loss, exact))


if __name__ == "__main__":
    main()
