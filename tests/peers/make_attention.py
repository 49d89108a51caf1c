"""Writes tests/fixtures/attention: forms of ONNX's Attention and RotaryEmbedding (opset 23), with
gradients by the same functions of PyTorch in f64.

    python3 tests/peers/make_attention.py

The form is that of the other fixtures (tests/fixtures/README.md); weights are inside the graph. Which
keys count follows from the first channel of x.
"""

import os

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "fixtures", "attention")
SAMPLES, LENGTH, WIDTH = 4, 6, 8


class Both:
    """Builds a graph and computes the same in PyTorch; values are pairs of a name and a tensor."""

    def __init__(self, x, dtype):
        self.nodes, self.initializers, self.parameters, self.count = [], [], {}, 0
        self.dtype = dtype
        self.x = ("x", x.to(dtype))

    def op(self, kind, inputs, value, outputs=1, **attributes):
        names = [f"v{self.count}_{i}" for i in range(outputs)]
        self.count += 1
        inputs = [i[0] if i else "" for i in inputs]
        self.nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return (names[0], value)

    def parameter(self, name, shape, scale):
        generator = torch.Generator().manual_seed(len(self.parameters))
        data = torch.randn(shape, generator=generator) * scale
        self.initializers.append(numpy_helper.from_array(data.numpy(), name))
        self.parameters[name] = data.to(self.dtype).requires_grad_()
        return (name, self.parameters[name])

    def constant(self, data):
        name = f"c{self.count}"
        self.count += 1
        self.initializers.append(numpy_helper.from_array(np.array(data), name))
        value = torch.tensor(np.array(data))
        return (name, value.to(self.dtype) if value.is_floating_point() else value)

    def linear(self, name, x, width):
        w = self.parameter(name, (x[1].shape[-1], width), 0.5)
        return self.op("MatMul", [x, w], x[1] @ w[1])

    def heads(self, x, n):
        """[b,t,n·d] → [b,n,t,d]"""
        b, t, width = x[1].shape
        shape = self.constant(np.array([b, t, n, width // n]))
        x = self.op("Reshape", [x, shape], x[1].view(b, t, n, width // n))
        return self.op("Transpose", [x], x[1].transpose(1, 2), perm=[0, 2, 1, 3])

    def together(self, x):
        """[b,n,t,d] → [b,t,n·d]"""
        b, n, t, d = x[1].shape
        x = self.op("Transpose", [x], x[1].transpose(1, 2), perm=[0, 2, 1, 3])
        shape = self.constant(np.array([b, t, n * d]))
        return self.op("Reshape", [x, shape], x[1].reshape(b, t, n * d))

    def first(self, x, n):
        """The first positions of [b,t,d]."""
        ends = [self.constant(np.array([i])) for i in (0, n, 1)]
        return self.op("Slice", [x, *ends], x[1][:, :n])

    def attention(self, q, k, v, mask=None, past=(None, None), cap=0.0, causal=False, **attributes):
        three = q[1].dim() == 3
        split = lambda x, n: x.view(*x.shape[:2], n, -1).transpose(1, 2) if three else x
        hq, hk = attributes.get("q_num_heads", 0), attributes.get("kv_num_heads", 0)
        a, b, c = split(q[1], hq), split(k[1], hk), split(v[1], hk)
        if past[0]:
            b, c = torch.cat([past[0][1], b], 2), torch.cat([past[1][1], c], 2)
        offset = past[0][1].shape[2] if past[0] else 0
        b, c = [x.repeat_interleave(a.shape[1] // x.shape[1], 1) for x in (b, c)]
        s = a @ b.transpose(-1, -2) * attributes.get("scale", a.shape[-1] ** -0.5)
        if cap:
            s = torch.tanh(s / cap) * cap
        keep = torch.ones(s.shape, dtype=torch.bool)
        if mask and mask[1].dtype == torch.bool:
            keep = keep & mask[1]
        elif mask:
            s = s + mask[1]
        if causal:
            i, j = torch.arange(s.shape[2])[:, None], torch.arange(s.shape[3])
            keep = keep & (j <= i + offset)
        some = keep.any(-1, keepdim=True)
        y = (s.masked_fill(~keep & some, -torch.inf).softmax(-1) * some) @ c
        if three:
            y = y.transpose(1, 2).flatten(2)
        inputs = [q, k, v, mask, *past]
        while not inputs[-1]:
            inputs.pop()
        return self.op("Attention", inputs, y, softcap=cap, is_causal=int(causal), **attributes)

    def rotary(self, x, cos, sin, ids=None, dim=0, interleaved=False):
        c, s = (cos[1][ids[1]], sin[1][ids[1]]) if ids else (cos[1], sin[1])
        n = dim or x[1].shape[-1]
        turned, rest = x[1][..., :n], x[1][..., n:]
        a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
        c, s = c[:, None], s[:, None]
        y = (c * a - s * b, s * a + c * b)
        y = torch.stack(y, -1).flatten(-2) if interleaved else torch.cat(y, -1)
        inputs = [x, cos, sin] + ([ids] if ids else [])
        return self.op(
            "RotaryEmbedding", inputs, torch.cat([y, rest], -1),
            rotary_embedding_dim=dim, interleaved=int(interleaved))  # fmt: skip


def build(x, t, dtype):
    g = Both(x, dtype)
    zero = g.constant(np.array(0.0, np.float32))
    axes = g.constant(np.array([2]))
    channel = g.op("Slice", [g.x, *[g.constant(np.array([i])) for i in (0, 1, 2)]], g.x[1][..., :1])
    keep = g.op("Greater", [channel, zero], channel[1] > 0)
    keep = g.op("Squeeze", [keep, axes], keep[1][..., 0])
    shape = g.constant(np.array([SAMPLES, 1, 1, LENGTH]))
    keep = g.op("Reshape", [keep, shape], keep[1][:, None, None])
    parts = []

    def three(name, q=g.x, k=g.x, width=WIDTH):
        ways = zip("qkv", (q, k, k), (WIDTH, width, width))
        return [g.linear(f"{name}.{p}", x, w) for p, x, w in ways]

    q, k, v = three("plain")
    parts.append(g.attention(q, k, v, q_num_heads=2, kv_num_heads=2, scale=0.7))
    q, k, v = three("causal", k=g.first(g.x, 4))
    parts.append(g.attention(q, k, v, causal=True, q_num_heads=2, kv_num_heads=2))
    q, k, v = [g.heads(y, n) for y, n in zip(three("grouped", width=4), (4, 2, 2))]
    parts.append(g.together(g.attention(q, k, v, mask=keep)))
    q, k, v = [g.heads(y, 2) for y in three("both")]
    # ONNX's evaluator wants a row of the mask for each query here.
    full = [SAMPLES, 1, LENGTH, LENGTH]
    rows = g.op("Expand", [keep, g.constant(np.array(full))], keep[1].expand(full))
    parts.append(g.together(g.attention(q, k, v, mask=rows, causal=True)))
    q, k, v = [g.heads(y, 2) for y in three("cache")]
    past = [g.heads(g.linear(f"past.{p}", g.first(g.x, 3), WIDTH), 2) for p in "kv"]
    parts.append(g.together(g.attention(q, k, v, past=past, causal=True)))
    q, k, v = [g.heads(y, 2) for y in three("learned")]
    bias = g.parameter("learned.bias", (2, LENGTH, LENGTH), 1.0)
    parts.append(g.together(g.attention(q, k, v, mask=bias)))
    q, k, v = [g.heads(y, 2) for y in three("capped")]
    parts.append(g.together(g.attention(q, k, v, mask=keep, cap=1.5)))
    angle = np.arange(LENGTH)[:, None] * 0.7 ** np.arange(2)
    cos, sin = [g.constant(f(angle).astype(np.float32)) for f in (np.cos, np.sin)]
    ids = g.constant(np.stack([np.roll(np.arange(LENGTH), i) for i in range(SAMPLES)]))
    q, k, v = [g.heads(y, 2) for y in three("rotary")]
    q, k = g.rotary(q, cos, sin, ids), g.rotary(k, cos, sin, ids, interleaved=True)
    parts.append(g.together(g.attention(q, k, v)))
    tables = [np.stack([f(angle[:, :1])] * SAMPLES) for f in (np.cos, np.sin)]
    half = [g.constant(table.astype(np.float32)) for table in tables]
    q, k, v = [g.heads(y, 2) for y in three("partial")]
    parts.append(g.together(g.attention(g.rotary(q, *half, dim=2), k, v)))

    y = g.op("Concat", parts, torch.cat([p[1] for p in parts], -1), axis=2)
    y = g.op("Tanh", [y], y[1].tanh())
    y = g.op("ReduceMean", [y, g.constant(np.array([1]))], y[1].mean(1), keepdims=0)
    y = g.linear("head", y, 5)
    g.nodes[-1].output[0] = "logits"
    loss = F.cross_entropy(y[1], t)
    loss.backward()
    return g, loss.item()


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(1234)
    x, t = torch.randn(SAMPLES, LENGTH, WIDTH), torch.randint(0, 5, (SAMPLES,))
    x[:, :, 0] = x[:, :, 0].abs()
    x[1, :3, 0] *= -1  # padding at the left
    x[2, :, 0] *= -1  # nothing but padding
    g, loss = build(x, t, torch.float64)
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        g.nodes, "attention", [tensor("x", TensorProto.FLOAT, x.shape)],
        [tensor("logits", TensorProto.FLOAT, [SAMPLES, 5])], g.initializers)  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.checker.check_model(model)
    onnx.save(model, os.path.join(OUT, "model.onnx"))
    save_file({"in.x": x, "tgt.targets": t}, os.path.join(OUT, "batch.safetensors"))
    reference = {f"grad.{n}": p.grad.contiguous() for n, p in g.parameters.items()}
    reference["loss.f64"] = torch.tensor([loss], dtype=torch.float64)
    save_file(reference, os.path.join(OUT, "reference.safetensors"))
    print(len(reference) - 1, "gradients")
    from onnx.reference import ReferenceEvaluator

    got = ReferenceEvaluator(model).run(None, {"x": x.numpy()})[0]
    loss32 = F.cross_entropy(torch.tensor(got), t).item()
    print("ONNX's own evaluator:", loss32, "here:", loss)
    assert abs(loss32 - loss) < 1e-5


if __name__ == "__main__":
    main()
