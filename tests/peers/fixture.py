"""What scripts that make a fixture have in common: gradients as PyTorch has them, and the files of a fixture."""

import os

import torch
from safetensors.torch import save_file


def gradients(net, loss, dtype):
    """The loss and the gradients of `loss(net)` in a format, as a number and as f64 tensors by name."""
    net = net.to(dtype)
    net.zero_grad()
    value = loss(net)
    value.backward()
    found = {n: p.grad.double().clone() for n, p in net.named_parameters()}
    net.float()
    return value.item(), found


def reference(loss, exact, dtype=torch.float64):
    """A loss in f64 and gradients, stored in a format, by the names of a fixture's reference."""
    tensors = {f"grad.{n}": g.to(dtype).contiguous() for n, g in exact.items()}
    tensors["loss.f64"] = torch.tensor([loss], dtype=torch.float64)
    return tensors


def save(folder, x, t, tensors):
    """Writes a fixture's batch and its reference."""
    save_file({"in.x": x, "tgt.targets": t}, os.path.join(folder, "batch.safetensors"))
    save_file(tensors, os.path.join(folder, "reference.safetensors"))
