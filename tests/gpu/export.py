"""Writes the graphs of the benchmark networks, without weights: python export.py DIR [NAME…]

Needs torch and onnx (tests/peers/requirements.txt); runs where the pack is made.
"""

import os
import sys
import warnings

import nets
import onnx
import torch


def strip(path):
    """Removes the values of parameters and buffers, which both sides take from one weight file."""
    model = onnx.load(path)
    for t in model.graph.initializer:
        if t.name.endswith((".weight", ".bias", ".running_mean", ".running_var")):
            dims, dtype, name = list(t.dims), t.data_type, t.name
            t.Clear()
            t.name, t.data_type = name, dtype
            t.dims.extend(dims)
            t.data_location = onnx.TensorProto.EXTERNAL
            entry = t.external_data.add()
            entry.key, entry.value = "location", "weights.stripped"
    with open(path, "wb") as file:
        file.write(model.SerializeToString(deterministic=True))


def main(folder, names):
    os.makedirs(folder, exist_ok=True)
    for name in names:
        net, (x, _) = nets.exported(name), nets.batch(name)
        path = os.path.join(folder, f"{name}.onnx")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                net, (x[:1],), path, dynamo=False, opset_version=17, do_constant_folding=False,
                training=torch.onnx.TrainingMode.TRAINING, input_names=[nets.input_name(name)],
                output_names=["logits"], dynamic_axes={nets.input_name(name): {0: "N"}},
            )  # fmt: skip
        strip(path)
        print(f"{path}: {os.path.getsize(path) / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or list(nets.CASES))
