"""Writes model.onnx of this folder: a byte-level GPT without weights.

    python export.py            write the file
    python export.py --train    also train the recipe's way in PyTorch, on the repository's sources

Needs torch, onnx and numpy; the versions used are in tests/peers/requirements.txt.
"""

import argparse
import glob
import math
import os
import tempfile
import time

import onnx
import torch
from torch import nn
from torch.nn import functional as F
from torch.onnx import TrainingMode

HERE = os.path.dirname(os.path.abspath(__file__))
VOCAB, CONTEXT, WIDTH, HEADS, LAYERS = 256, 128, 128, 4, 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.c_fc = nn.Linear(WIDTH, 4 * WIDTH)
        self.m_proj = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x, mask):
        b, t, c = x.shape
        q, k, v = (
            u.view(b, t, HEADS, c // HEADS).transpose(1, 2)
            for u in self.c_attn(self.ln_1(x)).split(WIDTH, dim=2)
        )
        scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(c // HEADS))
        scores = scores.masked_fill(mask[:, :, :t, :t] == 0, float("-inf"))
        y = (F.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(b, t, c)
        x = x + self.c_proj(y)
        return x + self.m_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Gpt(nn.Module):
    """Bytes [batch, seq] to logits [batch, seq, 256]; the head shares the embedding's table."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(VOCAB, WIDTH)
        self.wpe = nn.Embedding(CONTEXT, WIDTH)
        self.h = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.lm_head.weight = self.wte.weight
        mask = torch.tril(torch.ones(CONTEXT, CONTEXT)).view(1, 1, CONTEXT, CONTEXT)
        self.register_buffer("mask", mask, persistent=False)
        for table in (self.wte, self.wpe):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, input_ids):
        positions = torch.arange(0, input_ids.shape[1])
        x = self.wte(input_ids) + self.wpe(positions)
        for block in self.h:
            x = block(x, self.mask)
        return self.lm_head(self.ln_f(x))


def strip(model, parameters):
    """Replaces the values of the named initialisers by a reference to a file that does not exist."""
    for tensor in model.graph.initializer:
        if tensor.name in parameters:
            length = len(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", "weights.stripped"), ("length", str(length))):
                tensor.external_data.add(key=key, value=value)


def export(path):
    torch.manual_seed(0)
    net = Gpt().train()
    with tempfile.TemporaryDirectory() as folder:
        full = os.path.join(folder, "full.onnx")
        torch.onnx.export(
            net,
            (torch.zeros(2, 16, dtype=torch.int64),),
            full,
            dynamo=False,
            training=TrainingMode.TRAINING,
            do_constant_folding=False,
            opset_version=17,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_axes={"input_ids": {0: "batch", 1: "seq"}, "logits": {0: "batch", 1: "seq"}},
        )
        model = onnx.load(full)
    onnx.checker.check_model(model)
    names = {name for name, _ in net.named_parameters()}
    assert names == {t.name for t in model.graph.initializer}
    strip(model, names)
    onnx.save(model, path)
    return sum(p.numel() for p in net.parameters())


def train(folder, steps=600, batch=8, lr=2e-3, warmup=30):
    """The recipe in PyTorch. Returns the first and the last training loss, the test loss, seconds."""
    files = sorted(
        f for g in ("**/*.rs",) for f in glob.glob(os.path.join(folder, g), recursive=True)
        if "/target/" not in f
    )
    text = b"".join(open(f, "rb").read() for f in files)
    text = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    cut = int(len(text) * 0.9)
    torch.manual_seed(0)
    net = Gpt().train()
    opt = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    losses, start = [], time.perf_counter()
    for step in range(steps):
        rate = lr * (step + 1) / warmup
        if step >= warmup:
            rate = lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        for group in opt.param_groups:
            group["lr"] = rate
        at = torch.randint(cut - CONTEXT - 1, (batch,))
        rows = torch.stack([text[i : i + CONTEXT + 1] for i in at.tolist()])
        opt.zero_grad()
        logits = net(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - start
    rest = text[cut:]
    rows = rest[: len(rest) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)[:200]
    with torch.no_grad():
        logits = net(rows[:, :-1])
        test = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
    return len(files), len(text), losses[0], sum(losses[-20:]) / 20, test, seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--sources", default=os.path.join(HERE, "..", ".."))
    args = parser.parse_args()
    print(export(os.path.join(HERE, "model.onnx")), "parameters")
    if args.train:
        files, length, first, last, test, seconds = train(args.sources)
        print(f"{files} files, {length} bytes; loss {first:.3f} -> {last:.3f} (mean of the last 20), "
              f"test loss {test:.3f}, {seconds:.0f} s")
