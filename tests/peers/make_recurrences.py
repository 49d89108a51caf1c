"""Writes tests/fixtures/recurrences: LSTM, GRU and RNN of torch.nn in every form that they have, by
both exporters, and the options of ONNX's operators that PyTorch has not, with gradients in f64.

    python3 tests/peers/make_recurrences.py

`model.onnx` is torch.nn's by the TorchScript exporter, `dynamo.onnx` the same without packed sequences by
torch.export, which writes RNN step by step (its reference: `dynamo.…`). `options.onnx` is written out by hand, its reference (`options.…`) a loop over steps.
"""

import os

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "fixtures", "recurrences")
BATCH, STEPS, WIDTH, CLASSES = 6, 7, 5, 4
LENGTHS = [7, 6, 4, 4, 2, 1]


class Net(nn.Module):
    """Every form in a branch of its own, so that no fault hides behind another."""

    def __init__(self):
        super().__init__()
        self.deep = nn.LSTM(WIDTH, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.state = nn.LSTM(WIDTH, 5)
        self.first = nn.Parameter(0.5 * torch.randn(2, 1, 1, 5))
        self.bare = nn.LSTM(WIDTH, 3, bias=False)
        self.packed = nn.LSTM(WIDTH, 4, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(WIDTH, 6, num_layers=2, batch_first=True)
        self.both = nn.GRU(WIDTH, 3, bidirectional=True, bias=False)
        self.tanh = nn.RNN(WIDTH, 4, num_layers=2, bidirectional=True)
        self.relu = nn.RNN(WIDTH, 4, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(8 + 10 + 3 + 8 + 6 + 6 + 8 + 4, CLASSES)

    def forward(self, x, whole=False):
        turned = x.transpose(0, 1)
        h, c = (s.expand(1, x.shape[0], 5).contiguous() for s in self.first)
        _, (h, c) = self.state(turned, (h, c))
        if whole:
            packed = self.packed(x)[0]
        else:
            lengths = torch.tensor(LENGTHS)
            packed = pack_padded_sequence(x, lengths, batch_first=True)
            packed = pad_packed_sequence(self.packed(packed)[0], batch_first=True)[0]
        parts = [
            self.deep(x)[0].mean(1),
            h[0],
            c[0],
            self.bare(turned)[0][-1],
            packed.sum(1),
            self.gru(x)[1][1],
            self.both(turned)[0].mean(0),
            self.tanh(turned)[0][2],
            self.relu(x)[0].mean(1),
        ]
        return self.head(torch.cat(parts, 1))


class Whole(nn.Module):
    """Without packed sequences, which torch.export does not take."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x, whole=True)


def strip(name):
    """Leaves out where in which file an exporter saw a node."""
    path = os.path.join(OUT, name)
    model = onnx.load(path)
    del model.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    del model.graph.metadata_props[:], model.graph.value_info[:], model.functions[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""
    onnx.checker.check_model(model)
    onnx.save(model, path)


def gradients(net, x, t):
    net.zero_grad()
    loss = F.cross_entropy(net(x), t)
    loss.backward()
    return loss.item(), {n: p.grad.clone().contiguous() for n, p in net.named_parameters()}


# What ONNX has and PyTorch has not: peepholes, the reset gate before the product, other activations,
# a direction in reverse alone, batch first as a layout, sequences that end early.
ACTS = {"Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Relu": torch.relu}
FORMS = {
    # name: (operator, direction, hidden, layout, activations of a direction, attributes)
    "hole": ("LSTM", "reverse", 3, 0, ["Sigmoid", "Tanh", "Tanh"], {}),
    "odd": ("LSTM", "bidirectional", 4, 1, ["Tanh", "Sigmoid", "Relu"], {}),
    "reset": ("GRU", "bidirectional", 3, 1, ["Sigmoid", "Tanh"], {"linear_before_reset": 0}),
    "after": ("GRU", "reverse", 4, 0, ["Sigmoid", "Relu"], {"linear_before_reset": 1}),
    "plain": ("RNN", "bidirectional", 4, 0, ["Relu"], {}),
}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def walk(op, x, w, r, b, p, h, c, lengths, reverse, acts, after):
    """One direction over x [t,b,n], as the text of ONNX's operators says."""
    n = r.shape[1]
    f = [ACTS[a] for a in acts]
    wb, rb = b.split(b.shape[0] // 2)
    out = [None] * x.shape[0]
    for t in reversed(range(x.shape[0])) if reverse else range(x.shape[0]):
        xs = (x[t] @ w.T + wb).split(n, 1)
        hs = (h @ r.T + rb).split(n, 1)
        c_new = c
        if op == "RNN":
            new = f[0](xs[0] + hs[0])
        elif op == "LSTM":
            pi, po, pf = p.split(n)
            i = f[0](xs[0] + hs[0] + pi * c)
            forget = f[0](xs[2] + hs[2] + pf * c)
            c_new = forget * c + i * f[1](xs[3] + hs[3])
            o = f[0](xs[1] + hs[1] + po * c_new)
            new = o * f[2](c_new)
        else:
            z, reset = f[0](xs[0] + hs[0]), f[0](xs[1] + hs[1])
            if after:
                inner = reset * hs[2]
            else:
                inner = (reset * h) @ r[2 * n :].T + rb[2 * n :]
            new = (1 - z) * f[1](xs[2] + inner) + z * h
        on = (torch.tensor(lengths) > t)[:, None]
        out[t] = torch.where(on, new, torch.zeros_like(new))
        h, c = torch.where(on, new, h), torch.where(on, c_new, c)
    return torch.stack(out), h, c


class Options:
    def __init__(self):
        self.params, self.nodes, self.inits, self.parts = {}, [], [], []
        width = 0
        for name, (op, direction, n, layout, acts, attrs) in FORMS.items():
            d, m = 2 if direction == "bidirectional" else 1, GATES[op] * n
            shapes = {"W": (d, m, WIDTH), "R": (d, m, n), "B": (d, 2 * m)}
            shapes["h"] = (BATCH, d, n) if layout else (d, BATCH, n)
            if op == "LSTM":
                shapes |= {"c": shapes["h"], "P": (d, 3 * n)}
            for k, s in shapes.items():
                self.params[f"{name}.{k}"] = 0.6 * torch.randn(s)
            self.inits.append(numpy_helper.from_array(np.array(LENGTHS, np.int32), f"{name}.len"))
            source = "x" if layout else "x.turned"
            ins = [source] + [f"{name}.{k}" for k in ("W", "R", "B", "len", "h")]
            if op == "LSTM":
                ins += [f"{name}.c", f"{name}.P"]
            outs = [f"{name}.y", f"{name}.yh"] + ([f"{name}.yc"] if op == "LSTM" else [])
            self.nodes.append(
                helper.make_node(op, ins, outs, name=name, direction=direction, hidden_size=n,
                                 layout=layout, activations=acts * d, **attrs))  # fmt: skip
            # Of outputs a mean over steps, of states the sum of the directions.
            step, side = (1, 0 if not layout else 1) if layout else (0, 0)
            self.reduce(f"{name}.y", step, keep=False)
            self.reduce(f"{name}.y.r", 1 if layout else 0, keep=False)
            for s in outs[1:]:
                self.reduce(s, side, keep=False)
            self.parts += [f"{name}.y.r.r"] + [f"{s}.r" for s in outs[1:]]
            width += n * len(outs)
        self.params["head"] = 0.6 * torch.randn(width, CLASSES)

    def reduce(self, name, axis, keep):
        self.inits.append(numpy_helper.from_array(np.array([axis], np.int64), f"{name}.axis"))
        self.nodes.append(
            helper.make_node("ReduceMean", [name, f"{name}.axis"], [f"{name}.r"],
                             name=f"{name}.mean", keepdims=int(keep)))  # fmt: skip

    def save(self, path):
        nodes = [helper.make_node("Transpose", ["x"], ["x.turned"], name="turn", perm=[1, 0, 2])]
        nodes += self.nodes
        nodes += [
            helper.make_node("Concat", self.parts, ["all"], name="all", axis=1),
            helper.make_node("MatMul", ["all", "head"], ["logits"], name="out"),
        ]
        inits = [numpy_helper.from_array(p.numpy(), k) for k, p in self.params.items()]
        graph = helper.make_graph(
            nodes, "options",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, STEPS, WIDTH])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [BATCH, CLASSES])],
            self.inits + inits)  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 8
        onnx.checker.check_model(model)
        onnx.save(model, path)

    def loss(self, p, x, t):
        parts = []
        for name, (op, direction, n, layout, acts, attrs) in FORMS.items():
            ys, hs, cs = [], [], []
            for d, reverse in enumerate([False, True] if direction == "bidirectional" else [True]):
                pick = lambda k: p[f"{name}.{k}"]  # noqa: E731
                first = lambda k: pick(k)[:, d] if layout else pick(k)[d]  # noqa: E731
                lstm = op == "LSTM"
                y, h, c = walk(
                    op, x.transpose(0, 1), pick("W")[d], pick("R")[d], pick("B")[d],
                    pick("P")[d] if lstm else None, first("h"), first("c") if lstm else torch.zeros(()),
                    LENGTHS, reverse, acts, attrs.get("linear_before_reset"))  # fmt: skip
                ys.append(y.mean(0))
                hs.append(h)
                cs.append(c)
            mean = lambda s: torch.stack(s).mean(0)  # noqa: E731
            parts += [mean(ys), mean(hs)] + ([mean(cs)] if op == "LSTM" else [])
        return F.cross_entropy(torch.cat(parts, 1) @ p["head"], t)


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(7)
    net = Net().train()
    x, t = 2 * torch.randn(BATCH, STEPS, WIDTH), torch.randint(0, CLASSES, (BATCH,))
    names = {"input_names": ["x"], "output_names": ["logits"]}
    torch.onnx.export(
        net, (x,), os.path.join(OUT, "model.onnx"), dynamo=False, opset_version=17,
        training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False, **names)  # fmt: skip
    torch.onnx.export(
        Whole(net), (x,), os.path.join(OUT, "dynamo.onnx"), dynamo=True, optimize=False,
        external_data=False, **names)  # fmt: skip
    strip("model.onnx")
    strip("dynamo.onnx")
    options = Options()
    options.save(os.path.join(OUT, "options.onnx"))

    net, wide = net.double(), x.double()
    loss, exact = gradients(net, wide, t)
    reference = {f"grad.{n}": g for n, g in exact.items()}
    reference["loss.f64"] = torch.tensor([loss], dtype=torch.float64)
    _, exact = gradients(Whole(net), wide, t)
    reference |= {f"dynamo.grad.{n}": g for n, g in exact.items()}
    params = {k: p.double().requires_grad_() for k, p in options.params.items()}
    loss = options.loss(params, wide, t)
    loss.backward()
    reference |= {f"options.grad.{k}": p.grad.contiguous() for k, p in params.items()}
    reference["options.loss.f64"] = loss.detach().reshape(1)
    save_file({"in.x": x, "tgt.targets": t}, os.path.join(OUT, "batch.safetensors"))
    save_file(reference, os.path.join(OUT, "reference.safetensors"))


if __name__ == "__main__":
    main()
