"""Writes model.onnx and digits.safetensors of this folder.

    python export.py            write both files
    python export.py --train    also train the recipe's way in PyTorch, over three seeds

Needs torch, onnx, numpy, safetensors and scikit-learn (which ships the data);
the versions used are in tests/peers/requirements.txt.
"""

import argparse
import os
import time

import numpy as np
import onnx
import torch
from safetensors.numpy import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.onnx import TrainingMode

HERE = os.path.dirname(os.path.abspath(__file__))


class Net(nn.Module):
    """Two convolutions with batch normalisation; 8x8 pixels in, 10 logits out."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(32 * 4 * 4, 10)

    def forward(self, image):
        h = torch.relu(self.bn1(self.conv1(image)))
        h = self.pool(torch.relu(self.bn2(self.conv2(h))))
        return self.fc(h.flatten(1))


def data():
    """Pixels u8 [1797, 1, 8, 8] in 0..=16 and labels u8 [1797].

    The source keeps each writer's digits together. The rows are shuffled once here, so that
    a test split taken from the end holds digits of every writer.
    """
    d = load_digits()
    images = d.images.astype(np.uint8).reshape(-1, 1, 8, 8)
    assert (images == d.images.reshape(images.shape)).all() and images.max() == 16
    order = np.argsort(np.random.Generator(np.random.Philox(0)).random(len(images)))
    return np.ascontiguousarray(images[order]), d.target.astype(np.uint8)[order]


def export(path):
    torch.manual_seed(0)
    net = Net().train()
    torch.onnx.export(
        net,
        (torch.zeros(2, 1, 8, 8),),
        path,
        dynamo=False,
        training=TrainingMode.TRAINING,
        do_constant_folding=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )
    model = onnx.load(path)
    onnx.checker.check_model(model)
    exported, own = {t.name for t in model.graph.initializer}, dict(net.named_parameters())
    assert own.keys() <= exported, own.keys() - exported
    batch_norms = [n for n in model.graph.node if n.op_type == "BatchNormalization"]
    assert len(batch_norms) == 2 and all(len(n.output) == 3 for n in batch_norms)


def train(seed, epochs=12, batch=64, lr=0.05, momentum=0.9, decay=5e-4, warmup=20):
    """The recipe in PyTorch. Returns the test accuracy and the seconds the training took."""
    images, labels = data()
    x, y = torch.tensor(images).float() / 16, torch.tensor(labels).long()
    cut = len(x) - len(x) // 5
    torch.manual_seed(seed)
    net = Net().train()
    opt = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    steps = epochs * (cut // batch)
    step, start = 0, time.perf_counter()
    for _ in range(epochs):
        order = torch.randperm(cut)
        for i in range(cut // batch):
            rows = order[i * batch : (i + 1) * batch]
            if step < warmup:
                rate = lr * (step + 1) / warmup
            else:
                rate = lr * 0.5 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))
            opt.param_groups[0]["lr"] = rate
            opt.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            opt.step()
            step += 1
    seconds = time.perf_counter() - start
    net.eval()
    with torch.no_grad():
        accuracy = (net(x[cut:]).argmax(1) == y[cut:]).float().mean().item()
    return accuracy, seconds, steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", action="store_true")
    args = parser.parse_args()
    images, labels = data()
    save_file({"images": images, "labels": labels}, os.path.join(HERE, "digits.safetensors"))
    export(os.path.join(HERE, "model.onnx"))
    if args.train:
        for seed in range(3):
            accuracy, seconds, steps = train(seed)
            print(f"seed {seed}: {steps} steps in {seconds:.1f} s, test accuracy: {accuracy:.4f}")
