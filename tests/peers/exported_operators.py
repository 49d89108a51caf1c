"""Small functions of torch by both exporters through `precast grad`, against PyTorch in f64.

    python exported_operators.py PRECAST [--only GLOB] [--opset N] [--list] [--table FILE] [--keep FOLDER]

A case is a function of tensors. Tensors of floats become parameters, so that each has a gradient; those of
integers and bools are data of the run. The loss is the mean square of the results less a target. Each case
is exported by the TorchScript exporter (opset 17, training mode) and by torch.export (opset 18 or N, not
optimised), and is

- right:    loss, results and gradients are those of PyTorch in f64, within 1e-4 of the largest element;
- lost:     they are not, and nothing in the file shows it: a row of docs/EXPORTING.md says so;
- warned:   they are not, and a warning with a code says what differs;
- refused:  an error with a code;
- unexported: the exporter refuses it;
- wrong:    anything else.

Exit status 1 where a case is wrong. Needs torch, onnx, onnxscript, safetensors.
"""

import argparse
import collections
import contextlib
import copy
import fnmatch
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import onnx
import torch
from safetensors.numpy import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.onnx import TrainingMode

INF, NAN = float("inf"), float("nan")
EXPORTERS = {"TorchScript": 17, "torch.export": 18}
CASES = {}
torch.manual_seed(1234)
GENERATOR = torch.Generator().manual_seed(1234)


def case(name, f, *inputs, exact=None):
    """`exact`: the function in other words, where PyTorch's own is not right in f64, or is random."""
    assert name not in CASES, name
    CASES[name] = (f, [x if isinstance(x, torch.Tensor) else torch.tensor(x) for x in inputs], exact or f)


def n(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def u(*shape):
    return torch.rand(*shape, generator=GENERATOR) * 0.8 + 0.1


def ints(*shape, high=8, low=0, dtype=torch.int64):
    return torch.randint(low, high, shape, generator=GENERATOR).to(dtype)


FIXED = []


def fixed(t):
    """Floats that are data of the run and no parameters."""
    FIXED.append(t)
    return t


def learned(x):
    return x.is_floating_point() and not any(x is t for t in FIXED)


# By exporter, what a file does not show; docs/EXPORTING.md lists it.
LOST = {
    "TorchScript": (
        "avg_pool* divisor*", "embedding*padding_idx", "embedding scale_grad_by_freq", "detach", "gaussian_nll *",
        "gumbel-free hard", "softplus",
    ),
    "torch.export": (),
}  # fmt: skip


def real(t):
    """Results of integers as floats, so that a loss is defined."""
    return t if t.is_floating_point() else t.double().float()


# Scatters and indices.
IDS = torch.tensor([0, 2, 2, 5, 0, 0])
ROWS = IDS[:, None].expand(6, 3).contiguous()
for how in ("sum", "mean", "amax", "amin", "prod"):
    if how != "sum":
        case(f"index_reduce {how}", lambda x, s, i, how=how: x.index_reduce(0, i, s, how), n(7, 3), n(6, 3), IDS)
    for own in (True, False):
        case(f"scatter_reduce {how}{'' if own else ' without self'}",
             lambda x, s, i, how=how, own=own: x.scatter_reduce(0, i, s, how, include_self=own), n(7, 3), n(6, 3), ROWS)
case("scatter_add", lambda x, s, i: x.scatter_add(0, i, s), n(7, 3), n(6, 3), ROWS)
case("scatter", lambda x, s, i: x.scatter(1, i, s), n(3, 7), n(3, 2), torch.tensor([[0, 1], [4, 3], [6, 2]]))
case("scatter value", lambda x, i: x.scatter(1, i, 2.5), n(3, 7), torch.tensor([[0, 1], [4, 3], [6, 2]]))
case("scatter reduce add", lambda x, s, i: x.scatter(0, i, s, reduce="add"), n(7, 3), n(6, 3), ROWS,
     exact=lambda x, s, i: x.scatter_add(0, i, s))
case("scatter reduce multiply", lambda x, i: x.scatter(0, i, 1.5, reduce="multiply"), n(7, 3), ROWS,
     exact=lambda x, i: x.scatter_reduce(0, i, torch.full(i.shape, 1.5, dtype=x.dtype), "prod"))
case("index_add", lambda x, s, i: x.index_add(0, i, s), n(7, 3), n(6, 3), IDS)
case("index_add alpha", lambda x, s, i: x.index_add(0, i, s, alpha=-2.5), n(7, 3), n(6, 3), IDS)
case("index_copy", lambda x, s, i: x.index_copy(0, i, s), n(7, 3), n(3, 3), torch.tensor([4, 0, 2]))
case("index_fill", lambda x, i: x.index_fill(0, i, -1.5), n(7, 3), torch.tensor([4, 0]))
case("index_select", lambda x, i: x.index_select(1, i), n(3, 7), IDS)
case("gather", lambda x, i: x.gather(1, i), n(3, 7), torch.tensor([[0, 0], [4, 3], [6, 6]]))
case("take", lambda x, i: x.take(i), n(3, 7), torch.tensor([0, 20, 3, 3]))
case("take_along_dim", lambda x, i: x.take_along_dim(i, 1), n(3, 7), torch.tensor([[0, 0], [4, 3], [6, 6]]))
case("index_put", lambda x, s, i: x.index_put((i,), s), n(7, 3), n(3, 3), torch.tensor([4, 0, 2]))
case("index_put accumulate", lambda x, s, i: x.index_put((i,), s, accumulate=True), n(7, 3), n(6, 3), IDS)
case("masked_fill", lambda x, m: x.masked_fill(m, -2.0), n(3, 4), n(3, 4) > 0)
case("masked_scatter", lambda x, m, s: x.masked_scatter(m, s), n(3, 4), n(3, 4) > 0, n(12))
case("where", lambda m, x, y: torch.where(m, x, y), n(3, 4) > 0, n(3, 4), n(4))
case("where scalar", lambda m, x: torch.where(m, x, 2.0), n(3, 4) > 0, n(3, 4))
case("slice_scatter", lambda x, s: x.slice_scatter(s, 0, 1, 6, 2), n(7, 3), n(3, 3))
case("select_scatter", lambda x, s: x.select_scatter(s, 0, 2), n(7, 3), n(3))
case("diagonal_scatter", lambda x, s: x.diagonal_scatter(s), n(4, 4), n(4))
case("repeat_interleave", lambda x: x.repeat_interleave(3, 1), n(2, 3))
case("repeat_interleave tensor", lambda x: x.repeat_interleave(torch.tensor([1, 3, 2]), 1), n(2, 3))
case("roll", lambda x: x.roll((1, -2), (0, 1)), n(4, 5))
case("flip", lambda x: x.flip(0, 1), n(4, 5))
case("rot90", lambda x: x.rot90(1, (0, 1)), n(4, 5))
case("tril", lambda x: x.tril(-1), n(4, 5))
case("triu", lambda x: x.triu(2), n(4, 5))
case("diagonal", lambda x: x.diagonal(1), n(4, 5))
case("diag_embed", lambda x: torch.diag_embed(x, 1), n(2, 3))
case("unfold", lambda x: x.unfold(1, 3, 2), n(2, 9))
case("im2col", lambda x: F.unfold(x, (2, 3), 1, 1, 2), n(2, 3, 6, 7))
case("col2im", lambda x: F.fold(x, (5, 6), (2, 3), 1, 1, 2), n(2, 12, 9))
case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), n(1, 8, 3, 2))
case("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), n(1, 2, 4, 6))
case("channel_shuffle", lambda x: F.channel_shuffle(x, 2), n(1, 6, 2, 2))
case("topk", lambda x: x.topk(3, 1)[0], n(3, 7))
case("topk smallest", lambda x: x.topk(3, 1, largest=False)[0], n(3, 7))
case("kthvalue", lambda x: x.kthvalue(3, 1)[0], n(3, 7))
case("sort", lambda x: x.sort(1, descending=True)[0], n(3, 7))
case("median", lambda x: x.median(1)[0], n(3, 7))
case("cummax", lambda x: x.cummax(1)[0], n(3, 7))
case("bucketize", lambda x: x * torch.bucketize(x, torch.tensor([-0.5, 0.0, 0.5], dtype=x.dtype)), n(9))
case("one_hot", lambda x, i: x @ F.one_hot(i, 7).to(x.dtype).T, n(2, 7), IDS)

# Arithmetic.
A, B = n(3, 4) * 3, n(3, 4) * 2
case("add alpha", lambda x, y: torch.add(x, y, alpha=2.5), A, B)
case("sub alpha", lambda x, y: torch.sub(x, y, alpha=-2.5), A, B)
case("rsub alpha", lambda x, y: torch.rsub(x, y, alpha=3), A, B)
case("div floor", lambda x, y: x * torch.div(x, y, rounding_mode="floor"), A, B)
case("div trunc", lambda x, y: x * torch.div(x, y, rounding_mode="trunc"), A, B)
case("floor_divide", lambda x, y: x * (x.detach() // y.detach()), A, B)
case("floor_divide scalar", lambda x: x * (x.detach() // -0.7), A)
case("remainder", torch.remainder, A, B)
case("remainder scalar", lambda x: x % -0.7, A)
case("fmod", torch.fmod, A, B)
case("fmod scalar", lambda x: torch.fmod(x, -0.7), A)
case("trunc", lambda x: x * x.trunc(), A)
case("frac", lambda x: x.frac(), A)
case("round", lambda x: x * x.round(), A)
case("round decimals", lambda x: x * x.round(decimals=1), A)
case("round decimals -1", lambda x: x * x.round(decimals=-1), 10 * A)
case("clamp", lambda x: x.clamp(-1, 2), A)
case("clamp min above max", lambda x: x.clamp(2, -1) * x, A)
case("clamp tensor", lambda x, y: torch.clamp(x, min=y), A, B)
case("clip one side", lambda x: x.clip(max=0.5), A)
case("addcmul", lambda x, y, z: torch.addcmul(x, y, z, value=-0.5), A, B, n(4))
case("addcdiv", lambda x, y, z: torch.addcdiv(x, y, z, value=-0.5), A, B, u(4))
case("lerp", lambda x, y: torch.lerp(x, y, 0.3), A, B)
case("lerp tensor", torch.lerp, A, B, u(4))
case("hypot", torch.hypot, A, B)
case("atan2", torch.atan2, A, B)
case("copysign", torch.copysign, A, B)
case("xlogy", torch.xlogy, A, u(3, 4))
case("logaddexp", torch.logaddexp, A, B)
case("logaddexp2", torch.logaddexp2, A, B)
case("float_power", lambda x: torch.float_power(x, 3).to(x.dtype), A)
case("pow scalar base", lambda x: torch.pow(1.7, x), A)
case("ldexp", torch.ldexp, A, ints(3, 4, low=-3, high=4))
case("log1p", torch.log1p, u(3, 4))
case("log2", torch.log2, u(3, 4))
case("log10", torch.log10, u(3, 4))
case("expm1", torch.expm1, A)
case("exp2", torch.exp2, A)
case("erf", torch.erf, A)
case("erfc", torch.erfc, A)
case("logit eps", lambda x: torch.logit(x, 0.2), u(3, 4))
case("sinc", torch.sinc, A)
case("deg2rad", torch.deg2rad, A)
case("square", torch.square, A)
case("heaviside", lambda x, y: x * torch.heaviside(x.detach(), y.detach()), A, B)
case("nan_to_num", lambda x: torch.nan_to_num(x, 0.5, 2.0, -2.0), torch.tensor([1.5, INF, -INF, NAN]))
case("sgn", lambda x: x * x.sgn(), A)
case("fix", lambda x: x * torch.fix(x), A)
case("positive", lambda x: +x, A)
case("cross", lambda x, y: torch.linalg.cross(x, y), n(4, 3), n(4, 3))

# Integers.
I, J = torch.tensor([7, -7, 8, -8, 0, -1, 5]), torch.tensor([2, 2, -3, 3, 4, 5, -1])
case("int floor_divide", lambda i, j, x: x * (i // j), I, J, n(7))
case("int floor_divide scalar", lambda i, x: x * (i // 2), I, n(7))
case("int floor_divide negative scalar", lambda i, x: x * (i // -2), I, n(7))
case("int div floor", lambda i, j, x: x * torch.div(i, j, rounding_mode="floor"), I, J, n(7))
case("int div trunc", lambda i, j, x: x * torch.div(i, j, rounding_mode="trunc"), I, J, n(7))
case("int true div", lambda i, j, x: x * (i / j), I, J, n(7))
case("int remainder", lambda i, j, x: x * (i % j), I, J, n(7))
case("int remainder scalar", lambda i, x: x * (i % 3), I, n(7))
case("int fmod", lambda i, j, x: x * torch.fmod(i, j), I, J, n(7))
case("int pow", lambda i, x: x * i**3, I, n(7))
case("int abs", lambda i, x: x * i.abs(), I, n(7))
case("int sign", lambda i, x: x * i.sign(), I, n(7))
case("int shift left", lambda i, x: x * (i.abs() << 2), I, n(7))
case("int shift right", lambda i, x: x * (i >> 1), I, n(7))
case("int bitwise", lambda i, j, x: x * ((i & j) + (i | j) - (i ^ j) + ~i), I, J, n(7))
case("int cumsum", lambda i, x: x * i.cumsum(0), I, n(7))
case("int mean", lambda i, x: x * i.to(x.dtype).mean(), I, n(7))
case("int clamp", lambda i, x: x * i.clamp(-3, 6), I, n(7))
case("int from float", lambda x: x * (3 * x).to(torch.int64), n(7))
case("int32 wraps", lambda i, x: x * ((i.to(torch.int32) * 2**29) // 2**20), I, n(7))
BYTES = torch.tensor([250, 3, 200, 128, 255, 0, 17], dtype=torch.uint8)
OTHER = torch.tensor([10, 250, 100, 128, 255, 1, 30], dtype=torch.uint8)
for kind in ("uint8", "int8", "int16"):
    to = getattr(torch, kind)
    a = BYTES.to(to) if kind != "int16" else BYTES.to(to) * 129
    b = OTHER.to(to) if kind != "int16" else OTHER.to(to) * 129
    # From int64, since not every type is one of an input.
    a, b = a.to(torch.int64), b.to(torch.int64)
    for name, f in {"add": lambda i, j: i + j, "sub": lambda i, j: i - j, "mul": lambda i, j: i * j,
                    "neg": lambda i, j: -i, "sum": lambda i, j: i.sum(0, dtype=i.dtype) + j,
                    "cumsum": lambda i, j: i.cumsum(0, dtype=i.dtype), "abs": lambda i, j: i.abs(),
                    "add scalar": lambda i, j: i + 100, "pow": lambda i, j: i**2,
                    "matmul": lambda i, j: (i[None] @ j[:, None]).flatten(),
                    "mean of sum": lambda i, j: (i + j) // 2, "greater": lambda i, j: (i + j) > i,
                    "divide": lambda i, j: (i // j.clamp(min=1)), "not": lambda i, j: ~i}.items():
        case(f"{kind} {name}", lambda i, j, x, f=f, to=to: x * f(i.to(to), j.to(to)), a, b, n(7))
case("uint8 input add", lambda i, j, x: x * (i + j), BYTES, OTHER, n(7))
case("uint8 input mean", lambda i, x: x * (i.to(x.dtype) / 255 - 0.5), BYTES, n(7))
case("uint8 from float", lambda x: x * (100 * x.abs()).to(torch.uint8), u(7))
case("bool add", lambda i, j, x: x * ((i > 3) + (j > 3)), I, J, n(7))
case("bool sum", lambda i, x: x * (i > 3).sum(), I, n(7))

# Reductions.
R = n(3, 4, 5)
for k, v in {"": {}, " correction 0": {"correction": 0}, " correction 2": {"correction": 2}}.items():
    case(f"std{k}", lambda x, v=v: x.std(1, **v), R)
    case(f"var{k}", lambda x, v=v: x.var((0, 2), **v), R)
    case(f"std_mean{k}", lambda x, v=v: torch.cat(torch.std_mean(x, 1, **v)), R)
    case(f"var_mean{k}", lambda x, v=v: torch.cat(torch.var_mean(x, 1, keepdim=True, **v)), R)
case("std whole", lambda x: x.std(), R)
case("var biased", lambda x: x.var(1, unbiased=False), R)
case("mean dims", lambda x: x.mean((0, 2)), R)
case("sum whole", lambda x: x.sum(), R)
case("prod dim", lambda x: x.prod(1), R)
case("cumsum", lambda x: x.cumsum(1), R)
case("cumsum exclusive", lambda x: x.cumsum(1) - x, R)
case("cumsum reversed", lambda x: x.flip(1).cumsum(1).flip(1), R)
case("cumprod", lambda x: x.cumprod(1), R)
case("logcumsumexp", lambda x: x.logcumsumexp(1), R)
case("logsumexp dims", lambda x: x.logsumexp((0, 2)), R)
case("norm p", lambda x: x.norm(3.0, 1), R)
case("norm fro", lambda x: torch.linalg.norm(x, dim=(1, 2)), R)
case("norm nuc-free inf", lambda x: torch.linalg.vector_norm(x, INF, 1), R)
case("norm half", lambda x: torch.linalg.vector_norm(x, 0.5, 1), R)
case("norm zero", lambda x: x * torch.linalg.vector_norm(x, 0, 1, keepdim=True), R)
case("renorm", lambda x: x.renorm(2, 0, 1.5), R)
case("normalize eps", lambda x: F.normalize(x, p=1.0, dim=1, eps=3.0), R)
case("cosine_similarity", lambda x, y: F.cosine_similarity(x, y, 1, 0.5), R, n(3, 4, 5))
case("pairwise_distance", lambda x, y: F.pairwise_distance(x, y, 1.0, 0.1, True), R, n(3, 4, 5))
case("cdist", lambda x, y: torch.cdist(x, y), n(4, 3), n(5, 3))
case("aminmax", lambda x: torch.stack(x.aminmax(dim=1)), R)
case("diff", lambda x: x.diff(dim=1), R)
case("trapezoid", lambda x: torch.trapezoid(x, dx=0.5, dim=1), R)
case("any all", lambda x: x * ((x > 1).any(1, keepdim=True) | (x > -1).all(1, keepdim=True)), R)
case("count_nonzero", lambda x: x.sum(1) * (x > 0).count_nonzero(1), R)

# Products.
case("addmm", lambda x, a, b: torch.addmm(x, a, b, beta=0.5, alpha=-2.0), n(3, 5), n(3, 4), n(4, 5))
case("addmm beta 0", lambda x, a, b: torch.addmm(x, a, b, beta=0, alpha=1.5), n(3, 5), n(3, 4), n(4, 5))
case("addmv", lambda x, a, b: torch.addmv(x, a, b, beta=0.5, alpha=-2.0), n(3), n(3, 4), n(4))
case("addr", lambda x, a, b: torch.addr(x, a, b, beta=0.5, alpha=-2.0), n(3, 4), n(3), n(4))
case("baddbmm", lambda x, a, b: torch.baddbmm(x, a, b, beta=0.5, alpha=-2.0), n(2, 3, 5), n(2, 3, 4), n(2, 4, 5))
case("addbmm", lambda x, a, b: torch.addbmm(x, a, b, beta=0.5, alpha=-2.0), n(3, 5), n(2, 3, 4), n(2, 4, 5))
case("bilinear", F.bilinear, n(2, 3), n(2, 4), n(5, 3, 4), n(5))
case("einsum", lambda a, b: torch.einsum("bij,bkj->bki", a, b), n(2, 3, 4), n(2, 5, 4))
case("tensordot", lambda a, b: torch.tensordot(a, b, ([1, 2], [0, 1])), n(2, 3, 4), n(3, 4, 5))
case("kron", torch.kron, n(2, 3), n(3, 2))
case("outer", torch.outer, n(3), n(4))
case("matrix_power", lambda a: torch.matrix_power(a, 3), n(3, 3))

# Activations.
for name, f in {
    "gelu": F.gelu, "gelu tanh": lambda x: F.gelu(x, approximate="tanh"), "softplus": lambda x: F.softplus(x, 2.0, 3.0),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0), "celu": lambda x: F.celu(x, 0.3), "elu": lambda x: F.elu(x, 0.3),
    "selu": F.selu, "leaky_relu": lambda x: F.leaky_relu(x, 0.3), "rrelu": lambda x: F.rrelu(x, 0.2, 0.4, False),
    "threshold": lambda x: F.threshold(x, 0.5, -2.0), "hardshrink": lambda x: F.hardshrink(x, 1.0),
    "softshrink": lambda x: F.softshrink(x, 1.0), "tanhshrink": F.tanhshrink, "logsigmoid": F.logsigmoid,
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "mish": F.mish, "silu": F.silu, "relu6": F.relu6,
    "softmin": lambda x: F.softmin(x, 1), "glu": lambda x: F.glu(x, 1), "softmax f32": lambda x: x.softmax(0),
    "log_softmax": lambda x: F.log_softmax(x, 0), "softsign": F.softsign, "softmax2d": lambda x: F.softmax(x[None], 1),
}.items():
    case(name, f, A)
case("prelu", F.prelu, n(2, 4, 3), u(4))
case("gumbel-free hard", lambda x: x.softmax(1) - x.softmax(1).detach() + F.one_hot(x.argmax(1), 4).to(x.dtype), A)

# Normalisations.
IMAGE = n(2, 4, 5, 6)
case("layer_norm eps", lambda x, w, b: F.layer_norm(x, (6,), w, b, 0.5), IMAGE, n(6), n(6))
case("layer_norm two axes", lambda x, w, b: F.layer_norm(x, (5, 6), w, b, 0.5), IMAGE, n(5, 6), n(5, 6))
case("layer_norm no bias", nn.LayerNorm(6, eps=0.3, bias=False), IMAGE)
case("group_norm eps", lambda x, w, b: F.group_norm(x, 2, w, b, 0.5), IMAGE, n(4), n(4))
case("instance_norm eps", lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=0.5), IMAGE, n(4), n(4))
case("instance_norm tracked", nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE)
case("rms_norm eps", lambda x, w: F.rms_norm(x, (6,), w, 0.5), IMAGE, n(6))
case("rms_norm no eps", lambda x: F.rms_norm(x, (6,)), IMAGE)
case("batch_norm", nn.BatchNorm2d(4, eps=0.3, momentum=0.2), IMAGE)
case("batch_norm cumulative", nn.BatchNorm2d(4, momentum=None), IMAGE)
case("batch_norm plain", nn.BatchNorm2d(4, affine=False), IMAGE)
case("batch_norm without statistics", nn.BatchNorm2d(4, track_running_stats=False), IMAGE)
case("batch_norm functional", lambda x, w, b: F.batch_norm(x, None, None, w, b, True, 0.1, 0.3), IMAGE, n(4), n(4))
case("local_response_norm", lambda x: F.local_response_norm(x, 3, 0.5, 0.6, 2.0), IMAGE)
case("weight_norm", nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), IMAGE)

# Pools.
for name, kw in {
    "": {}, " ceil": {"ceil_mode": True}, " dilation": {"dilation": 2}, " padding": {"padding": 1},
    " ceil padding stride": {"ceil_mode": True, "padding": 1, "stride": 2},
    " ceil dilation": {"ceil_mode": True, "dilation": 2, "stride": 2},
}.items():
    case(f"max_pool2d{name}", lambda x, kw=kw: F.max_pool2d(x, 3, **kw), n(2, 4, 8, 9))
    case(f"max_pool1d{name}", lambda x, kw=kw: F.max_pool1d(x, 3, **kw), n(2, 4, 10))
for name, kw in {
    "": {}, " ceil": {"ceil_mode": True}, " padding": {"padding": 1}, " not counted": {"padding": 1, "count_include_pad": False},
    " ceil padding": {"ceil_mode": True, "padding": 1, "stride": 2},
    " ceil not counted": {"ceil_mode": True, "padding": 1, "stride": 2, "count_include_pad": False},
}.items():
    case(f"avg_pool2d{name}", lambda x, kw=kw: F.avg_pool2d(x, 3, **kw), n(2, 4, 8, 9))
    case(f"avg_pool1d{name}", lambda x, kw=kw: F.avg_pool1d(x, 3, **kw), n(2, 4, 10))
for k in (1, 4, 20):
    case(f"avg_pool2d divisor {k}", lambda x, k=k: F.avg_pool2d(x, 3, 2, 1, divisor_override=k), n(2, 4, 8, 9))
case("avg_pool2d divisor uncounted", lambda x: F.avg_pool2d(x, 3, 2, 1, False, False, 5), n(2, 4, 8, 9))
case("avg_pool2d divisor ceil", lambda x: F.avg_pool2d(x, 3, 2, 1, True, True, 5), n(2, 4, 8, 8))
case("avg_pool3d divisor", lambda x: F.avg_pool3d(x, 2, divisor_override=3), n(1, 2, 4, 4, 4))
case("avg_pool3d", lambda x: F.avg_pool3d(x, 2, 2, 1), n(1, 2, 4, 4, 4))
case("lp_pool2d", lambda x: F.lp_pool2d(x, 2, 3), n(1, 2, 6, 6))
case("lp_pool2d 3", lambda x: F.lp_pool2d(x, 3, 2), u(1, 2, 6, 6))
case("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 3), n(1, 2, 6, 9))
case("adaptive_avg_pool2d uneven", lambda x: F.adaptive_avg_pool2d(x, (3, 4)), n(1, 2, 7, 9))
case("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, 3), n(1, 2, 6, 9))
case("max_unpool2d", lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), n(1, 2, 6, 6))
case("fractional-free max_pool3d", lambda x: F.max_pool3d(x, 2, 1), n(1, 2, 4, 4, 4))

# Convolutions and padding.
case("conv2d same", lambda x, w: F.conv2d(x, w, padding="same", dilation=2), IMAGE, n(3, 4, 3, 3))
case("conv2d valid stride", lambda x, w, b: F.conv2d(x, w, b, 2, "valid"), IMAGE, n(3, 4, 2, 3), n(3))
case("conv2d same even", lambda x, w: F.conv2d(x, w, padding="same"), IMAGE, n(3, 4, 2, 4))
case("conv2d groups", lambda x, w: F.conv2d(x, w, groups=2, padding=1, dilation=(1, 2)), IMAGE, n(6, 2, 3, 2))
case("conv1d", lambda x, w, b: F.conv1d(x, w, b, 2, 1), n(2, 3, 9), n(4, 3, 3), n(4))
case("conv_transpose2d", lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1, 2, 1), IMAGE, n(4, 3, 3, 3), n(6))
case("conv_transpose1d", lambda x, w: F.conv_transpose1d(x, w, stride=3, output_padding=2), n(2, 3, 5), n(3, 4, 4))
case("conv reflect", nn.Conv2d(4, 3, 3, padding=2, padding_mode="reflect"), IMAGE)
case("conv circular", nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), IMAGE)
for mode in ("constant", "reflect", "replicate", "circular"):
    kw = {"value": 1.5} if mode == "constant" else {}
    case(f"pad {mode}", lambda x, m=mode, kw=kw: F.pad(x, (1, 2, 2, 1), m, **kw), IMAGE)
case("pad negative", lambda x: F.pad(x, (-1, 2, 1, -2)), IMAGE)
case("zero_pad", nn.ZeroPad2d((1, 0, 2, 1)), IMAGE)

# Resizing and sampling.
for mode, kw in {
    "nearest": {}, "nearest-exact": {}, "bilinear": {"align_corners": False}, "bilinear aligned": {"align_corners": True},
    "bicubic": {"align_corners": False}, "bicubic aligned": {"align_corners": True}, "area": {},
    "bilinear antialias": {"antialias": True}, "bicubic antialias": {"antialias": True},
}.items():
    m = mode.split()[0]
    for to, size in {"up": {"size": (8, 9)}, "down": {"size": (3, 4)}, "factor": {"scale_factor": 1.7},
                     "factor kept": {"scale_factor": 1.7, "recompute_scale_factor": True}}.items():
        if "antialias" in mode and to.startswith("factor"):
            continue
        case(f"interpolate {mode} {to}", lambda x, m=m, kw=kw, size=size: F.interpolate(x, mode=m, **size, **kw), IMAGE)
case("interpolate linear", lambda x: F.interpolate(x, 7, mode="linear"), n(2, 3, 4))
case("interpolate trilinear", lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), n(1, 2, 3, 3, 3))
for mode in ("bilinear", "nearest", "bicubic"):
    for padding in ("zeros", "border", "reflection"):
        for aligned in (False, True):
            case(f"grid_sample {mode} {padding}{' aligned' if aligned else ''}",
                 lambda x, g, m=mode, p=padding, a=aligned: F.grid_sample(x, g, m, p, a), n(1, 2, 5, 6), 1.2 * n(1, 3, 4, 2))
case("affine_grid", lambda t: F.affine_grid(t, (2, 1, 3, 4), align_corners=False), n(2, 2, 3))
case("affine_grid aligned", lambda t: F.affine_grid(t, (2, 1, 3, 4), align_corners=True), n(2, 2, 3))

# Embeddings.
TABLE = 2 * n(9, 3)
case("embedding", lambda w, i: F.embedding(i, w), TABLE, IDS)
case("embedding padding_idx", lambda w, i: F.embedding(i, w, padding_idx=2), TABLE, IDS)
case("embedding negative padding_idx", lambda w, i: F.embedding(i, w, padding_idx=-7), TABLE, IDS)
case("embedding scale_grad_by_freq", lambda w, i: F.embedding(i, w, scale_grad_by_freq=True), TABLE, IDS)


class Renormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(9, 3, max_norm=1.0)
        self.e.weight.data = TABLE.clone()

    def forward(self, i):
        return self.e(i)


case("embedding max_norm", Renormed(), IDS)


class Bags(nn.Module):
    def __init__(self, offsets, **kw):
        super().__init__()
        self.e = nn.EmbeddingBag(9, 3, **kw)
        self.e.weight.data = TABLE.clone()
        self.register_buffer("offsets", torch.tensor(offsets))

    def forward(self, i, w=None):
        return self.e(i, self.offsets, w)


for mode in ("sum", "mean", "max"):
    case(f"embedding_bag {mode}", Bags([0, 2, 3], mode=mode), IDS)
    case(f"embedding_bag {mode} empty bag", Bags([0, 2, 2, 3], mode=mode), IDS)
    case(f"embedding_bag {mode} empty last", Bags([0, 2, 6], mode=mode), IDS)
    case(f"embedding_bag {mode} padding_idx", Bags([0, 2, 3], mode=mode, padding_idx=2), IDS)
    case(f"embedding_bag {mode} all padding", Bags([0, 1, 3], mode=mode, padding_idx=2), IDS)
    case(f"embedding_bag {mode} rows", lambda w, i, m=mode: F.embedding_bag(i, w, mode=m), TABLE, IDS.reshape(2, 3))
case("embedding_bag weights", Bags([0, 2, 3], mode="sum"), IDS, u(6))
case("embedding_bag weights empty", Bags([0, 2, 2, 3], mode="sum"), IDS, u(6))
case("embedding_bag last offset", Bags([0, 2, 4, 6], mode="mean", include_last_offset=True), IDS)

# Losses.
SCORES, CLASSES = n(6, 4), torch.tensor([0, 3, 1, 2, -100, 3])
SOFT = fixed(n(6, 4).softmax(1))
WEIGHT = torch.tensor([0.2, 1.5, 0.7, 2.0])
for how in ("mean", "sum", "none"):
    case(f"cross_entropy {how}", lambda x, t, h=how: F.cross_entropy(x, t, reduction=h), SCORES, CLASSES)
    case(f"cross_entropy {how} weight", lambda x, t, h=how: F.cross_entropy(x, t, WEIGHT.to(x.dtype), reduction=h),
         SCORES, CLASSES)
    case(f"cross_entropy {how} ignore_index",
         lambda x, t, h=how: F.cross_entropy(x, t, ignore_index=3, reduction=h), SCORES, CLASSES.clamp(min=0))
    case(f"cross_entropy {how} smoothing",
         lambda x, t, h=how: F.cross_entropy(x, t, label_smoothing=0.2, reduction=h), SCORES, CLASSES)
    case(f"cross_entropy {how} smoothing weight", lambda x, t, h=how: F.cross_entropy(
        x, t, WEIGHT.to(x.dtype), label_smoothing=0.2, reduction=h), SCORES, CLASSES)
    case(f"cross_entropy {how} probabilities",
         lambda x, t, h=how: F.cross_entropy(x, t.detach(), reduction=h), SCORES, SOFT)
    case(f"nll {how}", lambda x, t, h=how: F.nll_loss(F.log_softmax(x, 1), t, reduction=h), SCORES, CLASSES)
    case(f"nll {how} weight", lambda x, t, h=how: F.nll_loss(F.log_softmax(x, 1), t, WEIGHT.to(x.dtype), reduction=h),
         SCORES, CLASSES)
    case(f"nll 2d {how}", lambda x, t, h=how: F.nll_loss(F.log_softmax(x, 1), t, ignore_index=2, reduction=h),
         n(2, 4, 3, 2), ints(2, 3, 2, high=4))
    case(f"cross_entropy 2d {how}", lambda x, t, h=how: F.cross_entropy(x, t, reduction=h), n(2, 4, 3, 2),
         ints(2, 3, 2, high=4))
    for log in (False, True):
        case(f"kl_div {how}{' log_target' if log else ''}", lambda x, t, h=how, log=log: F.kl_div(
            F.log_softmax(x, 1), (t.log() if log else t).detach(), reduction=h, log_target=log), SCORES, SOFT)
    case(f"bce {how}", lambda x, t, h=how: F.binary_cross_entropy(x, t.detach(), reduction=h), u(6, 4), SOFT)
    case(f"bce weight {how}", lambda x, t, h=how: F.binary_cross_entropy(
        x, t.detach(), WEIGHT.to(x.dtype), reduction=h), u(6, 4), SOFT)
    case(f"bce_with_logits {how}", lambda x, t, h=how: F.binary_cross_entropy_with_logits(x, t.detach(), reduction=h),
         SCORES, SOFT)
    case(f"bce_with_logits pos_weight {how}", lambda x, t, h=how: F.binary_cross_entropy_with_logits(
        x, t.detach(), pos_weight=WEIGHT.to(x.dtype), reduction=h), SCORES, SOFT)
    case(f"bce_with_logits weight {how}", lambda x, t, h=how: F.binary_cross_entropy_with_logits(
        x, t.detach(), WEIGHT.to(x.dtype), reduction=h), SCORES, SOFT)
    case(f"huber {how}", lambda x, t, h=how: F.huber_loss(x, t, delta=0.6, reduction=h), SCORES, SOFT)
    case(f"smooth_l1 {how}", lambda x, t, h=how: F.smooth_l1_loss(x, t, beta=0.6, reduction=h), SCORES, SOFT)
    case(f"l1 {how}", lambda x, t, h=how: F.l1_loss(x, t, reduction=h), SCORES, SOFT)
    case(f"mse {how}", lambda x, t, h=how: F.mse_loss(x, t, reduction=h), SCORES, SOFT)
    case(f"poisson_nll {how}", lambda x, t, h=how: F.poisson_nll_loss(x, t.detach(), full=True, reduction=h), SCORES,
         fixed(3 * SOFT))
    case(f"gaussian_nll {how}", lambda x, t, v, h=how: F.gaussian_nll_loss(x, t, v, full=True, eps=0.3, reduction=h),
         SCORES, SOFT, u(6, 4))
    case(f"margin_ranking {how}", lambda x, y, h=how: F.margin_ranking_loss(
        x, y, torch.ones_like(x).detach(), margin=0.4, reduction=h), n(6), n(6))
    case(f"hinge_embedding {how}", lambda x, t, h=how: F.hinge_embedding_loss(x, t * 2 - 1, margin=0.7, reduction=h),
         SCORES, ints(6, 4, high=2))
    case(f"cosine_embedding {how}", lambda x, y, t, h=how: F.cosine_embedding_loss(x, y, t * 2 - 1, 0.3, reduction=h),
         SCORES, SOFT, ints(6, high=2))
    case(f"triplet_margin {how}", lambda x, y, z, h=how: F.triplet_margin_loss(x, y, z, 0.7, 1.0, swap=True, reduction=h),
         SCORES, SOFT, n(6, 4))
    case(f"soft_margin {how}", lambda x, t, h=how: F.soft_margin_loss(x, t * 2 - 1, reduction=h), SCORES,
         ints(6, 4, high=2))
    case(f"multilabel_soft_margin {how}", lambda x, t, h=how: F.multilabel_soft_margin_loss(
        x, t.to(x.dtype), WEIGHT.to(x.dtype), reduction=h), SCORES, ints(6, 4, high=2))
    case(f"multi_margin {how}", lambda x, t, h=how: F.multi_margin_loss(x, t, margin=0.7, reduction=h), SCORES,
         CLASSES.clamp(min=0))
case("kl_div batchmean", lambda x, t: F.kl_div(F.log_softmax(x, 1), t.detach(), reduction="batchmean"), SCORES, SOFT)
case("ctc", lambda x: F.ctc_loss(x.log_softmax(-1), torch.tensor([[1, 2], [2, 2]]), torch.tensor([7, 6]),
                                 torch.tensor([2, 2])), n(7, 2, 4))

# Attention. The last query has no key.
Q, K, V = n(2, 2, 5, 4), n(2, 2, 5, 4), n(2, 2, 5, 4)
KEEP = torch.rand(2, 1, 5, 5, generator=GENERATOR) > 0.4
KEEP[:, :, :, 0] = True
EMPTY = KEEP.clone()
EMPTY[:, :, 4] = False


def attend(q, k, v, *rest, **kw):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, *rest, **kw)


def minus_infinity(keep, x):
    return torch.zeros(keep.shape, dtype=x.dtype).masked_fill(~keep, -INF)


case("sdpa", lambda q, k, v: F.scaled_dot_product_attention(q, k, v), Q, K, V, exact=attend)
case("sdpa scale", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3), Q, K, V,
     exact=lambda q, k, v: attend(q, k, v, scale=0.3))
case("sdpa causal", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), Q, K, V,
     exact=lambda q, k, v: attend(q, k, v, is_causal=True))
case("sdpa causal fewer queries", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), Q[:, :, :3], K, V,
     exact=lambda q, k, v: attend(q, k, v, is_causal=True))
case("sdpa causal fewer keys", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), Q, K[:, :, :3], V[:, :, :3],
     exact=lambda q, k, v: attend(q, k, v, is_causal=True))
case("sdpa gqa", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), Q, K[:, :1], V[:, :1],
     exact=lambda q, k, v: attend(q, k, v, enable_gqa=True))
for name, keep in {"": KEEP, ", a row without keys": EMPTY}.items():
    case(f"sdpa bool mask{name}", lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), Q, K, V, keep, exact=attend)
    case(f"sdpa float mask{name}", lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, minus_infinity(m, q)),
         Q, K, V, keep, exact=lambda q, k, v, m: attend(q, k, v, minus_infinity(m, q)))
    case(f"sdpa float min mask{name}", lambda q, k, v, m: F.scaled_dot_product_attention(
        q, k, v, (~m).to(q.dtype) * torch.finfo(torch.float32).min), Q, K, V, keep, exact=lambda q, k, v, m: attend(
            q, k, v, (~m).to(q.dtype) * torch.finfo(torch.float32).min))
    case(f"sdpa constant bool mask{name}", lambda q, k, v, m=keep: F.scaled_dot_product_attention(q, k, v, m), Q, K, V,
         exact=lambda q, k, v, m=keep: attend(q, k, v, m))
    case(f"sdpa constant float mask{name}", lambda q, k, v, m=keep: F.scaled_dot_product_attention(
        q, k, v, minus_infinity(m, q)), Q, K, V, exact=lambda q, k, v, m=keep: attend(q, k, v, minus_infinity(m, q)))
    case(f"softmax written out{name}", lambda q, k, v, m: (
        (q @ k.transpose(-1, -2)).masked_fill(~m, -INF).softmax(-1).nan_to_num(0.0)) @ v, Q, K, V, keep,
        exact=lambda q, k, v, m: attend(q, k, v, m, scale=1.0))
case("sdpa learned mask", lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), Q, K, V, n(1, 2, 5, 5), exact=attend)


class Heads(nn.Module):
    def __init__(self, fast=None, **kw):
        super().__init__()
        self.m = nn.MultiheadAttention(4, 2, batch_first=True, **kw)
        self.fast = fast

    def forward(self, x, mask=None):
        return self.m(x, x, x, key_padding_mask=mask, need_weights=self.fast is None)[0]


for name, kw in {"": {}, " no bias": {"bias": False}, " bias_kv": {"add_bias_kv": True}, " zero_attn": {"add_zero_attn": True},
                 " weights": {"fast": 1}}.items():
    case(f"multihead attention{name}", Heads(**kw), n(2, 5, 4))
case("multihead attention padding", Heads(fast=1), n(2, 5, 4), torch.tensor([[False] * 5, [False, True, True, False, True]]))
case("encoder layer", nn.TransformerEncoderLayer(4, 2, 6, 0.0, "gelu", 0.2, True, True), n(2, 5, 4))

# What depends on the mode or on draws.
case("dropout 0", lambda x: F.dropout(x, 0.0), A)
case("dropout evaluated", lambda x: F.dropout(x, 0.5, training=False), A)
case("dropout2d 0", nn.Dropout2d(0.0), IMAGE)
case("alpha_dropout 0", nn.AlphaDropout(0.0), A)
case("detach", lambda x: x * x.detach(), A)
case("fft", lambda x: torch.fft.rfft(x).abs(), n(2, 8))
case("stft", lambda x: torch.stft(x, 8, 4, window=torch.hann_window(8, dtype=x.dtype), return_complex=True).abs(), n(2, 32))


class Model(nn.Module):
    def __init__(self, f, inputs):
        super().__init__()
        self.f = copy.deepcopy(f)
        self.places = []
        for k, x in enumerate(inputs):
            if learned(x):
                self.register_parameter(f"x{k}", nn.Parameter(x.clone()))
            self.places.append(f"x{k}" if learned(x) else None)

    def forward(self, probe, *data):
        data = iter(data)
        args = [next(data)[0] if p is None else getattr(self, p) for p in self.places]
        y = real(self.f(*args)).reshape(1, -1)
        return y + probe


# Warnings that say nothing of results: a gradient of 0, an input that is not read.
UNRELATED = {"P0233", "P0420", "P0421"}

RECIPE = """model = "model.onnx"
[data]
format = "safetensors"
file = "data.safetensors"
batch = 1
shuffle = false
inputs = {{ {inputs} }}
targets = {{ target = "target" }}
[loss]
kind = "mse"
prediction = "y"
[optimizer]
kind = "sgd"
lr = 0.1
[train]
steps = 1
"""


def reference(f, inputs, data, target):
    torch.manual_seed(0)
    model = Model(f, inputs).train().double()
    data = [d.double() if d.is_floating_point() else d for d in data]
    y = model(torch.zeros(1, 1, dtype=torch.float64), *data)
    loss = F.mse_loss(y, target.double())
    loss.backward()
    grads = {k: p.grad if p.grad is not None else torch.zeros_like(p) for k, p in model.named_parameters()}
    model.float()
    return y.detach(), {k: g.detach().numpy() for k, g in grads.items()}


@contextlib.contextmanager
def silence():
    """What a refusal prints comes from C++, which Python's redirection does not reach."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])


def exported(exporter, model, args, path):
    names = ["probe"] + [f"d{k}" for k in range(1, len(args))]
    opset = EXPORTERS[exporter]
    with silence(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "TorchScript":
            torch.onnx.export(model, args, path, dynamo=False, training=TrainingMode.TRAINING, opset_version=opset,
                              do_constant_folding=False, input_names=names, output_names=["y"])
        else:
            torch.onnx.export(model, args, path, dynamo=True, optimize=False, opset_version=opset, verbose=False,
                              external_data=False, input_names=names, output_names=["y"])


def differs(name, have, want):
    """What differs, or nothing."""
    want = np.asarray(want, np.float64)
    have = np.asarray(have, np.float64).reshape(want.shape)
    if not np.array_equal(np.isnan(have), np.isnan(want)):
        return f"{name}: NaN where PyTorch has {want[np.isnan(have)][:1]}" if np.isnan(have).any() else f"{name}: no NaN"
    finite = np.isfinite(want)
    if not np.array_equal(np.where(finite, 0, have), np.where(finite, 0, want), equal_nan=True):
        return f"{name}: other infinities"
    scale = max(np.abs(want[finite]).max(initial=0), 1e-3)
    off = np.abs(np.where(finite, have - want, 0)).max(initial=0)
    return f"{name}: off by {off:.3g} of {scale:.3g}" if off > 1e-4 * scale else ""


def run(precast, name, exporter, folder):
    """(verdict, what was seen)"""
    f, inputs, exact = CASES[name]
    data = [x[None] for x in inputs if not learned(x)]
    torch.manual_seed(0)
    size = Model(exact, inputs).train()(torch.zeros(1, 1), *data).numel()
    target = torch.randn(1, size, generator=torch.Generator().manual_seed(7))
    want, grads = reference(exact, inputs, data, target)
    torch.manual_seed(0)
    model = Model(f, inputs).train()
    path = os.path.join(folder, "model.onnx")
    try:
        exported(exporter, model, (torch.zeros(1, 1), *data), path)
    except Exception as e:
        return "unexported", f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}"[:150]
    arrays = {"probe": np.zeros((1, 1), np.float32), "target": target.numpy()}
    # The TorchScript exporter removes what the function does not read.
    read = {i.name for i in onnx.load(path, load_external_data=False).graph.input}
    arrays |= {f"d{k + 1}": np.ascontiguousarray(d.numpy()) for k, d in enumerate(data) if f"d{k + 1}" in read}
    save_file(arrays, os.path.join(folder, "data.safetensors"))
    with open(os.path.join(folder, "recipe.toml"), "w") as file:
        file.write(RECIPE.format(inputs=", ".join(f'{k} = "{k}"' for k in arrays if k != "target")))
    out = os.path.join(folder, "out.safetensors")
    with contextlib.suppress(FileNotFoundError):
        os.remove(out)
    command = [precast, "grad", "recipe.toml", "-o", "out.safetensors", "--policy", "f32"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    codes = " ".join(sorted(set(re.findall(r"(?:warning|note)\[(P\d+)\]", done.stderr)) - UNRELATED))
    if not os.path.exists(out):
        clear = done.returncode in (1, 2, 3, 4) and "error[" in done.stderr
        said = (done.stderr.strip().splitlines() or [""])[0]
        return ("refused", said[:160]) if clear else ("wrong", f"exit {done.returncode}: {done.stderr[-300:]}")
    got = load_file(out)
    faults = [differs("results", got["out.y"], want.numpy())]
    for k, g in grads.items():
        have = got.get(f"grad.{k}")
        if have is None:
            faults.append(f"no gradient of {k}" if np.abs(g).max(initial=0) > 0 else "")
        else:
            faults.append(differs(f"gradient of {k}", have, g))
    faults = [f for f in faults if f]
    if not faults:
        return "right", codes
    lost = any(fnmatch.fnmatch(name, glob) for glob in LOST[exporter])
    return ("lost" if lost else "warned" if codes else "wrong"), "; ".join(faults[:3]) + (f" ({codes})" if codes else "")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("precast")
    parser.add_argument("--only", default="*", help="a glob over the cases' names")
    parser.add_argument("--opset", type=int, default=18, help="of torch.export's files")
    parser.add_argument("--list", action="store_true", help="print every case and what was seen")
    parser.add_argument("--table", metavar="FILE", help="write the table of what is not right, as Markdown")
    parser.add_argument("--keep", metavar="FOLDER", help="leave the last files here")
    args = parser.parse_args()
    precast = os.path.abspath(args.precast)
    EXPORTERS["torch.export"] = args.opset
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    counts = {e: collections.Counter() for e in EXPORTERS}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or temporary
        os.makedirs(folder, exist_ok=True)
        for name in CASES:
            if not fnmatch.fnmatch(name, args.only):
                continue
            seen = {}
            for exporter in EXPORTERS:
                seen[exporter] = run(precast, name, exporter, folder)
                verdict, why = seen[exporter]
                counts[exporter][verdict] += 1
                if args.list or verdict in ("wrong", "warned"):
                    print(f"{verdict:10} {exporter:22} {name}: {why}", flush=True)
            if any(v != "right" for v, _ in seen.values()):
                rows.append((name, seen))
    verdicts = ("right", "lost", "warned", "refused", "unexported", "wrong")
    for exporter, c in counts.items():
        print(f"{exporter}: " + ", ".join(f"{c[v]} {v}" for v in verdicts))
    if args.table:
        with open(args.table, "w") as file:
            file.write("| case | " + " | ".join(EXPORTERS) + " |\n| --- |" + " --- |" * len(EXPORTERS) + "\n")
            for name, seen in rows:
                cells = [v if v == "right" else f"{v}: {why}" for v, why in seen.values()]
                file.write(f"| {name} | " + " | ".join(c.replace("|", "\\|") for c in cells) + " |\n")
    return 1 if any(c["wrong"] for c in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
