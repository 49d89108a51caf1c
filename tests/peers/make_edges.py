"""Writes tests/fixtures/edges: functions of torch at the points where their derivative is a matter of
convention (corners, ties, zeros of norms) or where the exported form overflows or cancels, with
PyTorch's gradients in f64.

    python3 tests/peers/make_edges.py

One graph holds every function, each of inputs of its own; its output is the sum of all results, each
element times a weight, so that a gradient belongs to one function alone. `ts.onnx` and `dynamo.onnx`
are of the two exporters, which write some functions differently; functions that one of them does not
know are in the other's graph alone. `reference.safetensors` has `in.NAME`, `ts.grad.NAME` and
`dynamo.grad.NAME`.
"""

import logging
import os
import warnings

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "fixtures", "edges")
INF = float("inf")
BOTH, TS, DYNAMO = ("ts", "dynamo"), ("ts",), ("dynamo",)

CORNERS = [0.0, -0.0, 6.0, -1.0, 1.0, 3.0, -3.0, 0.5, -0.5, 2.0, 7.0, -7.0]
FAR = [-385.0, -100.0, -30.0, -5.0, 0.0, 5.0, 30.0, 100.0, 385.0]
TIES = [[1.0, 2.0, 2.0, -1.0], [0.0, 0.0, 0.0, 0.0], [5.0, -5.0, 5.0, 5.0]]
ZERO_ROW = [[3.0, -4.0, 0.0], [0.0, 0.0, 0.0], [1e-3, 0.0, -1e-3]]

CASES = {}


def case(name, f, *inputs, exporters=BOTH, truth=None):
    """`truth`: the function in exact terms, where f64 overflows or cancels in `f` too."""
    tensors = [t if isinstance(t, torch.Tensor) else torch.tensor(t) for t in inputs]
    CASES[name] = (f, tensors, exporters, truth or f)


# Functions of one operand.
case("abs", torch.abs, CORNERS)
case("sqrt", torch.sqrt, [0.0, 1.0, 4.0])
case("rsqrt", torch.rsqrt, [0.0, 1.0, 4.0])
case("reciprocal", torch.reciprocal, [0.0, -2.0, 4.0])
case("log", torch.log, [0.0, 1.0, 1e-30])
case("asin", torch.asin, [-1.0, 0.0, 1e-6, 1.0])
case("acos", torch.acos, [-1.0, 0.0, 1e-6, 1.0])
case("atan", torch.atan, [-1e20, 0.0, 1e20])
case("acosh", torch.acosh, [1.0, 1.0 + 2.0**-20, 30.0], exporters=DYNAMO)
case("atanh", torch.atanh, [-1.0, 0.0, 1e-6, 1.0], exporters=DYNAMO)
case("asinh", torch.asinh, [-1e15, 0.0, 1e-6, 1e15], exporters=DYNAMO)
case("sinh", torch.sinh, [-80.0, 0.0, 1e-6, 80.0], exporters=DYNAMO)
case("tanh", torch.tanh, [-50.0, 0.0, 50.0])
case("sigmoid", torch.sigmoid, FAR)
case("round", torch.round, [0.5, -1.5, 2.0])
case("floor", torch.floor, [0.5, -1.5, 2.0])
case("ceil", torch.ceil, [0.5, -1.5, 2.0])
case("sign", lambda x: torch.sign(x) * x, CORNERS)
case("trunc", torch.trunc, [0.5, -1.5, 2.0], exporters=DYNAMO)
case("nan_to_num", lambda x: torch.nan_to_num(x, 1.0, 2.0, -2.0), [0.0, INF, -INF, float("nan"), 3.0],
     exporters=DYNAMO)
case("is_inf", lambda x: torch.where(torch.isinf(x), 0.0, x), [0.0, INF, -INF, 3.0])

# Of two.
PAIRS = ([0.0, 1.0, 2.0, -1.0, 0.0, 3.0], [0.0, 1.0, 3.0, -1.0, 1.0, 0.0])
case("maximum", torch.maximum, *PAIRS)
case("minimum", torch.minimum, *PAIRS)
case("div", torch.div, *PAIRS)
case("x_over_x", lambda x: x / x, [0.0, 1.0, -2.0])
BASES = ([0.0, 0.0, 0.0, 0.0, 2.0, -2.0, 0.0, 2.0], [0.0, 1.0, 2.0, 0.5, 0.0, 3.0, -1.0, -2.0])
case("pow", torch.pow, *BASES)
for p in (0.0, 0.5, 1.5, 2.0, 3.0, -0.5, -1.0, -2.0, -3.0):
    name = f"pow_{p}".replace("-", "m").replace(".", "_")
    case(name, lambda x, p=p: x**p, [0.0, 1.0, 4.0])
case("two_to_the", lambda x: 2.0**x, [-3.0, 0.0, 5.0])
case("fmod", torch.fmod, [5.0, -5.0, 4.0, 0.0, 7.5], [2.0, 2.0, 2.0, 3.0, -2.0])
case("remainder", torch.remainder, [5.0, -5.0, 4.0, 0.0, 7.5], [2.0, 2.0, 2.0, 3.0, -2.0])
# The branch that is not taken has a derivative of 0 times infinity.
case("where_sqrt", lambda x: torch.where(x > 0, torch.sqrt(x), 0.0), [0.0, 1.0, 4.0])
case("atan2", torch.atan2, [1.0, -1.0, 2.0], [2.0, 3.0, -1.0], exporters=DYNAMO)

# Activations.
case("relu", F.relu, CORNERS)
case("leaky_relu", lambda x: F.leaky_relu(x, 0.1), CORNERS)
case("prelu", F.prelu, CORNERS, [0.25])
case("elu", lambda x: F.elu(x, 2.0), CORNERS + [100.0, -100.0])
case("celu", lambda x: F.celu(x, 0.5), CORNERS + [100.0, -100.0])
case("selu", F.selu, CORNERS + [100.0, -100.0])
case("relu6", F.relu6, CORNERS)
case("hardtanh", nn.Hardtanh(), CORNERS)
case("hardtanh_wide", nn.Hardtanh(-3.0, 2.0), CORNERS)
case("clamp", lambda x: x.clamp(-1, 3), CORNERS)
case("clamp_min", lambda x: x.clamp(min=0), CORNERS)
case("clamp_max", lambda x: x.clamp(max=3), CORNERS)
case("clamp_tensors", torch.clamp, [0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 3.0, 2.0], [1.0, 1.0, 1.0, 3.0],
     exporters=DYNAMO)
case("hardsigmoid", F.hardsigmoid, CORNERS)
case("hardswish", F.hardswish, CORNERS)
case("hardswish_written", lambda x: x * F.relu6(x + 3) / 6, CORNERS)
case("softshrink", F.softshrink, CORNERS)
case("hardshrink", F.hardshrink, CORNERS)
case("threshold", lambda x: F.threshold(x, 1.0, 20.0), CORNERS, exporters=DYNAMO)
case("softsign", F.softsign, CORNERS)
case("softplus", F.softplus, FAR)
case("softplus_threshold", lambda x: F.softplus(x, 2.0, 5.0), [-9.0, 0.0, 2.5, 2.75, 50.0], exporters=DYNAMO)
case("mish", F.mish, FAR)
case("gelu", F.gelu, FAR)
case("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), FAR)
case("silu", F.silu, FAR)

# Over axes.
case("max_dim", lambda x: x.max(-1)[0], TIES)
case("min_dim", lambda x: x.min(0)[0], TIES)
case("amax", lambda x: x.amax(-1), TIES, exporters=DYNAMO)
case("amax_two", lambda x: x.amax((-2, -1)), [TIES, TIES])
case("amin_two", lambda x: x.amin((-2, -1)), [TIES, TIES])
case("max_whole", torch.max, TIES)
case("norm", lambda x: x.norm(dim=-1), ZERO_ROW)
case("norm_whole", lambda x: torch.linalg.norm(x), [[0.0, 0.0], [0.0, 0.0]])
case("norm_1", lambda x: x.norm(p=1, dim=-1), ZERO_ROW)
case("norm_3", lambda x: x.norm(p=3, dim=-1), ZERO_ROW)
case("norm_inf", lambda x: x.norm(p=INF, dim=-1), TIES)
case("normalize", lambda x: F.normalize(x, dim=-1), ZERO_ROW)
case("cdist", lambda x: torch.cdist(x, x), ZERO_ROW, exporters=TS)
# Rows of zeros in either operand, in both, and two rows that are equal.
ROWS = ([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, -2.0], [0.0, 0.0, 0.0], [2.0, 0.0, 1.0]],
        [[1.0, 2.0, 2.0], [2.0, -1.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, 1.0]])  # fmt: skip
# One row and its square are below the eps of 0.5, though not 0.
SHORT = ([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0], [0.25, 0.0, 0.25]], [[1.0, 2.0, 2.0], [0.5, 2.0, 1.0], [0.0, 0.125, 0.25]])
case("cosine", lambda a, b: F.cosine_similarity(a, b, dim=-1, eps=0.25), *ROWS)
case("cosine_own_eps", lambda a, b: F.cosine_similarity(a, b, dim=-1)[1:3], *ROWS)
# What is clamped without a gradient is clamped with one in a file of torch.export.
case("cosine_short", lambda a, b: F.cosine_similarity(a, b, dim=1, eps=0.5), *SHORT, exporters=TS)
case("cosine_of_pairs", lambda a, b: F.cosine_similarity(a[:, None], b[None], dim=2, eps=0.25), *ROWS)
case("pairwise", F.pairwise_distance, *ROWS)
case("pairwise_1", lambda a, b: F.pairwise_distance(a, b, p=1.0, keepdim=True), *ROWS)
case("pairwise_3", lambda a, b: F.pairwise_distance(a, b, p=3.0, eps=0.125), *ROWS)
case("pairwise_inf", lambda a, b: F.pairwise_distance(a, b, p=INF), *ROWS)
case("cdist_1", lambda a, b: torch.cdist(a, b, p=1.0), *ROWS, exporters=TS)
case("cdist_3", lambda a, b: torch.cdist(a, b, p=3.0), *ROWS, exporters=TS)
# By a matrix product, as cdist computes many rows.
MANY = (torch.arange(26 * 3) * 7 % 11 / 4.0 - 1.25).reshape(26, 3)
case("cdist_many_rows", lambda a, b: torch.cdist(a, b).mean(1), MANY, MANY.flip(0), exporters=TS)


def squares(x):
    return (x * x).sum(-1)


def norms(a, b):
    return a.norm(dim=-1) * b.norm(dim=-1)


def inverse(a, b):
    """1 / |a||b|, at most 4; nothing flows back from where that is infinite."""
    p = norms(a, b)
    return torch.where(p == 0, 4.0, 1 / torch.where(p == 0, 1.0, p)).clamp(max=4.0)


# Roots of sums of squares that are written out have the derivative of a norm, where PyTorch has NaN.
case("root_of_product", lambda a, b: torch.sqrt(squares(a) * squares(b)), *ROWS, truth=norms)
case("root_of_three", lambda a, b, c: torch.sqrt(squares(a) * 4.0 * (b**2).sum(-1) * c.pow(2).mean(-1)), *ROWS,
     ROWS[1][::-1], truth=lambda a, b, c: 2 * norms(a, b) * c.norm(dim=-1) / 3**0.5)
case("third_root_of_product", lambda a, b: (squares(a) * squares(b)) ** (1 / 3), *ROWS,
     truth=lambda a, b: torch.where(norms(a, b) == 0, 0, torch.where(norms(a, b) == 0, 1, norms(a, b)) ** (2 / 3)))
case("root_of_product_and_rest", lambda a, b: torch.sqrt(squares(a) * (squares(b) + 0.25)), *ROWS,
     truth=lambda a, b: a.norm(dim=-1) * torch.sqrt(squares(b) + 0.25))
case("root_of_floor", lambda a, b: torch.sqrt((squares(a) * squares(b)).clamp(min=0)), *ROWS, truth=norms)
case("root_of_relu", lambda a, b: torch.sqrt(torch.relu(squares(a - b))), *ROWS, truth=lambda a, b: (a - b).norm(dim=-1))
case("root_of_eps", lambda a, b: torch.sqrt(squares(a) * squares(b) + 0.25), *ROWS)
case("root_of_two_eps", lambda a, b: torch.sqrt((squares(a) + 0.25) * (squares(b) + 0.5)), *ROWS)
case("root_of_squares", lambda a, b: torch.sqrt(a * a + b**2), *ROWS,
     truth=lambda a, b: torch.linalg.vector_norm(torch.stack([a, b]), dim=0))
case("root_of_square", lambda x: torch.sqrt(x * x), CORNERS, truth=torch.abs)
case("root_of_far_product", lambda a, b: torch.sqrt(squares(a) * squares(b)), [[3e12, 4e12]], [[1e12, 0.0]], truth=norms)
case("root_of_near_product", lambda a, b: torch.sqrt(squares(a) * squares(b)), [[3e-13, 4e-13]], [[5e-13, 0.0]],
     truth=norms)
case("cosine_written", lambda a, b: (a * b).sum(-1) / torch.sqrt(squares(a) * squares(b)).clamp(min=0.25), *ROWS,
     truth=lambda a, b: (a * b).sum(-1) / norms(a, b).clamp(min=0.25))
case("cosine_by_rsqrt", lambda a, b: (a * b).sum(-1) * torch.rsqrt(squares(a) * squares(b)).clamp(max=4.0), *ROWS,
     truth=lambda a, b: (a * b).sum(-1) * inverse(a, b))
case("cosine_by_pow", lambda a, b: (a * b).sum(-1) * ((squares(a) * squares(b)) ** -0.5).clamp(max=4.0), *ROWS,
     truth=lambda a, b: (a * b).sum(-1) * inverse(a, b))
case("cosine_by_inverse", lambda a, b: (a * b).sum(-1) * (1 / torch.sqrt(squares(a) * squares(b))).clamp(max=4.0),
     *ROWS, truth=lambda a, b: (a * b).sum(-1) * inverse(a, b))
case("cosine_by_inverses", lambda a, b: (a * b).sum(-1) * (1 / (squares(a) ** 0.5 * squares(b).sqrt())).clamp(max=4.0),
     *ROWS, truth=lambda a, b: (a * b).sum(-1) * inverse(a, b))
case("std", lambda x: x.std(-1), [[1.0, 2.0, 4.0], [2.0, 2.0, 2.0]])
case("prod", lambda x: x.prod(-1), [[2.0, 3.0, -1.0, 4.0, 5.0], [2.0, 0.0, 3.0, 1.0, 1.0], [0.0, 0.0, 3.0, 1.0, 2.0]])
case("logsumexp", lambda x: x.logsumexp(-1), [[0.0, 0.0, -INF], [1000.0, 999.0, -1000.0], [-1000.0, -1000.0, -1001.0]])

# Pools. NaN is larger than any number.
NAN = float("nan")
WINDOWS = [[1.0, 2.0, 2.0, NAN], [2.0, 2.0, 0.0, 1.0], [NAN, -1.0, 3.0, 3.0], [-INF, -1.0, 3.0, NAN]]
case("max_pool", lambda x: F.max_pool2d(x[None, None], 2, 1)[0, 0], WINDOWS)
case("max_pool_dilated", lambda x: F.max_pool2d(x[None, None], 2, 1, 0, 2)[0, 0], WINDOWS)
case("max_pool_line", lambda x: F.max_pool1d(x[None], 3, 1, 0, 1)[0], WINDOWS)
case("max_pool_volume", lambda x: F.max_pool3d(x.reshape(1, 1, 2, 2, 4), 2, 1)[0, 0], WINDOWS)
# torch.export makes amax of these, another function at ties, before it exports.
case("adaptive_max", lambda x: F.adaptive_max_pool2d(x.reshape(3, 1, 2, 2), 1).reshape(3), TIES, exporters=TS)
case("adaptive_max_line", lambda x: F.adaptive_max_pool1d(x[None], 1)[0], WINDOWS[:3], exporters=TS)
case("max_dim_nan", lambda x: x.max(-1)[0], WINDOWS)
case("amax_nan", lambda x: x.amax(-1), WINDOWS, exporters=DYNAMO)

# Composites that exporters write out.
case("log_sigmoid", F.logsigmoid, FAR)
case("log_of_sigmoid", lambda x: torch.log(torch.sigmoid(x)), FAR, truth=F.logsigmoid)
case("log_of_rest", lambda x: torch.log(1 - torch.sigmoid(x)), FAR, truth=lambda x: F.logsigmoid(-x))
case("softmax", lambda x: F.softmax(x, -1), [[0.0, 0.0, -INF], [1000.0, 0.0, -1000.0]])
case("log_softmax", lambda x: F.log_softmax(x, -1), [[0.0, 1.0, 2.0], [1000.0, 0.0, -1000.0]])
case("log_of_softmax", lambda x: torch.log(F.softmax(x, 1)), [[[0.0, 9.0], [300.0, 1.0]]],
     truth=lambda x: F.log_softmax(x, 1))
case("log_one_plus_exp", lambda x: torch.log(1 + torch.exp(x)), FAR, truth=lambda x: F.softplus(x, threshold=700))
case("log_one_plus", lambda x: torch.log(1 + x), [1e-7, 0.0, -0.5, 3.0], truth=torch.log1p)
case("log1p", torch.log1p, [-1.0, 0.0, 1e-7])
case("expm1", torch.expm1, [1e-7, 0.0, -3.0], exporters=DYNAMO)
case("exp_minus_one", lambda x: torch.exp(x) - 1, [1e-7, 0.0, -3.0], truth=torch.expm1)
case("log_add_exp", lambda a, b: torch.log(torch.exp(a) + torch.exp(b)), [0.0, 500.0, -500.0, 1.0, 3.0],
     [0.0, -500.0, -499.0, 1.0, -2.0], truth=torch.logaddexp)
case("log_sum_exp_written", lambda x: torch.log(torch.exp(x).sum(-1)), [[0.0, 0.0, -9.0], [500.0, 499.0, -500.0]],
     truth=lambda x: x.logsumexp(-1))
case("sigmoid_written", lambda x: 1 / (1 + torch.exp(-x)), FAR, truth=torch.sigmoid)
case("softmax_written", lambda x: (e := torch.exp(x - x.max(-1, keepdim=True)[0])) / e.sum(-1, keepdim=True),
     [[0.0, 0.0, -9.0], [3.0, 3.0, 3.0]], truth=lambda x: F.softmax(x, -1))
case("bce_with_logits", F.binary_cross_entropy_with_logits, [-200.0, 200.0, 0.0, -30.0, 4.0], [0.0, 1.0, 0.0, 1.0, 0.5])
case("cross_entropy", lambda x: F.cross_entropy(x, torch.tensor([0, 2, 1, 1]), reduction="none"),
     [[10.5, 0.0, 0.0], [0.0, 0.0, 0.0], [30.0, 0.0, 0.0], [-9.0, 20.0, 5.0]])


class Net(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.names = names
        for n in names:
            if isinstance(CASES[n][0], nn.Module):
                self.add_module(n, CASES[n][0])

    def forward(self, weights, *x):
        x, total = list(x), 0
        for n in self.names:
            f = CASES[n][0] if not hasattr(self, n) else getattr(self, n)
            y = f(*[x.pop(0) for _ in CASES[n][1]])
            total = total + (y * weights[: y.numel()].reshape(y.shape)).sum()
        return total


# Some of ½, ¾, 1, 1¼, 1½, exact in every format. An input too, for a constant would be a parameter.
WEIGHTS = torch.arange(32) % 5 * 0.25 + 0.5


def weights(y):
    return WEIGHTS[: y.numel()].to(y.dtype).reshape(y.shape)


def main():
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.makedirs(OUT, exist_ok=True)
    torch.set_num_threads(1)
    saved = {}
    for exporter in BOTH:
        names = [n for n, c in CASES.items() if exporter in c[2]]
        inputs, labels = [WEIGHTS], ["weights"]
        saved["in.weights"] = WEIGHTS
        for n in names:
            _, tensors, _, truth = CASES[n]
            exact = [t.double().requires_grad_() for t in tensors]
            y = truth(*exact)
            grads = torch.autograd.grad((y * weights(y)).sum(), exact, allow_unused=True)
            for i, (t, g) in enumerate(zip(tensors, grads)):
                label = f"{n}.{i}"
                labels.append(label)
                inputs.append(t.float())
                saved[f"in.{label}"] = t.float()
                saved[f"{exporter}.grad.{label}"] = torch.zeros_like(exact[i]) if g is None else g
        path = os.path.join(OUT, f"{exporter}.onnx")
        net, args = Net(names).train(), tuple(inputs)
        names_io = dict(input_names=labels, output_names=["sum"])
        if exporter == "ts":
            torch.onnx.export(net, args, path, dynamo=False, opset_version=17, do_constant_folding=False,
                              training=torch.onnx.TrainingMode.TRAINING, **names_io)  # fmt: skip
        else:
            torch.onnx.export(net, args, path, dynamo=True, external_data=False, verbose=False, **names_io)
            slim(path)
    saved = {k: v.detach().contiguous() for k, v in saved.items()}
    save_file(saved, os.path.join(OUT, "reference.safetensors"))


def slim(path):
    """Leaves of each node's metadata the call alone: stack traces are most of the file."""
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        kept = [p for p in node.metadata_props if p.key == "pkg.torch.onnx.fx_node"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


if __name__ == "__main__":
    main()
