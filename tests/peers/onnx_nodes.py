"""ONNX's own node tests (onnx.backend.test) through `precast grad`.

    python onnx_nodes.py PRECAST [--only GLOB] [--list] [--at-least N]

Every test is a graph of one or a few nodes with inputs and the outputs that ONNX gives. It runs in two
forms: with its inputs as initializers, so that real ones are parameters and others are literals, and
with its inputs as data of a run. A form is

- right:   every output is within the test's own tolerance (rtol, atol) of ONNX's;
- refused: an error with a code;
- wrong:   anything else: other values, a panic, a signal, no output.

A test is right where the form with initializers is right and the form with data is right or refused; it
is wrong where one form is. Tests of strings, sequences, optionals, 8-bit and 4-bit floats and
quantised integers are left out, as are the expansions of functions into other operators.

Exit status 1 where a test is wrong, or fewer than N are right. Needs onnx, numpy, safetensors, ml_dtypes.
"""

import argparse
import collections
import fnmatch
import os
import subprocess
import sys
import tempfile
import warnings

import ml_dtypes  # noqa: F401  bfloat16 for numpy
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

RECIPE = """model = "model.onnx"
[data]
format = "safetensors"
file = "data.safetensors"
batch = 1
shuffle = false
inputs = {{ probe_in = "probe_in"{inputs} }}
targets = {{ probe_target = "probe_target" }}
[loss]
kind = "mse"
prediction = "probe"
[optimizer]
kind = "sgd"
lr = 0.1
[train]
steps = 1
"""

# Results in which Precast follows PyTorch and not ONNX's text, with the reason.
EXCEPTIONS = {
    # The running variance takes the unbiased one, as PyTorch's and the networks it exports.
    ("test_batchnorm_epsilon_training_mode", "output_var"),
    ("test_batchnorm_example_training_mode", "output_var"),
    # Masks are Precast's own draws.
    ("test_training_dropout", "y"),
    ("test_training_dropout_default", "y"),
}

REAL = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)
DTYPES = REAL + (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.bool_)


def plain(value):
    return isinstance(value, np.ndarray) and any(value.dtype == d for d in DTYPES)


def elem(array):
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def current_opset(model):
    """Operators that did not change since an old operator set may be said to be of set 13."""
    for imported in model.opset_import:
        if imported.domain == "" and imported.version < 13:
            since = [onnx.defs.get_schema(n.op_type, 13).since_version for n in model.graph.node]
            if max(since) <= imported.version:
                imported.version = 13


def build(case, inputs, outputs, as_data):
    """The test's model with its inputs given, and each output as f32 [1, ...] named `got_NAME`."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    current_opset(model)
    names = [i.name for i in graph.input]
    results = [o.name for o in graph.output]
    del graph.input[:], graph.output[:], graph.value_info[:]
    head, tail, data = [], [], {}

    def literal(name, array):
        graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    for k, (name, array) in enumerate(zip(names, inputs)):
        if as_data:
            outer = f"data_{k}"
            data[outer] = array[None]
            kind = elem(array)
            shape = [1, *array.shape]
            graph.input.append(helper.make_tensor_value_info(outer, kind, shape))
            to = literal(f"shape_{k}", np.array(array.shape, np.int64))
            head.append(helper.make_node("Reshape", [outer, to], [name], name=f"from_data_{k}"))
        else:
            literal(name, array)
    literal("probe.weight", np.ones(1, np.float32))
    for k, (name, array) in enumerate(zip(results, outputs)):
        value = name
        if array.dtype != np.float32:
            tail.append(helper.make_node("Cast", [name], [f"{name}_f32"], to=TensorProto.FLOAT, name=f"cast_{k}"))
            value = f"{name}_f32"
        to = literal(f"out_shape_{k}", np.array([1, *array.shape], np.int64))
        tail.append(helper.make_node("Reshape", [value, to], [f"got_{name}"], name=f"got_{k}"))
        graph.output.append(helper.make_tensor_value_info(f"got_{name}", TensorProto.FLOAT, [1, *array.shape]))
    flat = literal("flat", np.array([1, outputs[0].size], np.int64))
    tail.append(helper.make_node("Reshape", [f"got_{results[0]}", flat], ["flat_result"], name="flat_result"))
    tail.append(helper.make_node("Mul", ["flat_result", "probe.weight"], ["probe_times"], name="probe_times"))
    # A run has rows of data, whatever the test has.
    graph.input.append(helper.make_tensor_value_info("probe_in", TensorProto.FLOAT, [1, 1]))
    data["probe_in"] = np.zeros((1, 1), np.float32)
    tail.append(helper.make_node("Add", ["probe_times", "probe_in"], ["probe"], name="probe"))
    graph.output.append(helper.make_tensor_value_info("probe", TensorProto.FLOAT, [1, outputs[0].size]))
    data["probe_target"] = np.zeros((1, outputs[0].size), np.float32)
    nodes = [*head, *graph.node, *tail]
    del graph.node[:]
    graph.node.extend(nodes)
    return model, results, data


def run(precast, case, inputs, outputs, as_data, folder):
    """(`right`, `refused` or `wrong`, what was seen)"""
    try:
        model, results, data = build(case, inputs, outputs, as_data)
    except Exception as e:  # ONNX's helpers refuse some shapes
        return "refused", f"not built: {e}"
    onnx.save(model, os.path.join(folder, "model.onnx"))
    save_file({k: np.ascontiguousarray(v) for k, v in data.items()}, os.path.join(folder, "data.safetensors"))
    listed = "".join(f', {k} = "{k}"' for k in data if k.startswith("data_"))
    with open(os.path.join(folder, "recipe.toml"), "w") as file:
        file.write(RECIPE.format(inputs=listed))
    out = os.path.join(folder, "out.safetensors")
    if os.path.exists(out):
        os.remove(out)
    command = [precast, "grad", "recipe.toml", "-o", "out.safetensors", "--policy", "f32"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "wrong", "120 s were not enough"
    said = (done.stderr.strip().splitlines() or [""])[0]
    if not os.path.exists(out):
        clear = done.returncode in (1, 2, 3, 4) and "error[" in done.stderr
        return ("refused" if clear else "wrong"), (said if clear else f"exit {done.returncode}: {done.stderr[-400:]}")
    got = load_file(out)
    for name, want in zip(results, outputs):
        if (case.name, name) in EXCEPTIONS:
            continue
        key = f"out.got_{name}"
        if key not in got:
            return "wrong", f"no {key}"
        have = got[key].astype(np.float64).reshape(want.shape)
        real = any(want.dtype == d for d in REAL)
        rtol, atol = (case.rtol, max(case.atol, 1e-6)) if real else (0, 0)
        with np.errstate(over="ignore", invalid="ignore"):
            # The run computes in f32, whatever the test's format is.
            right = want.astype(np.float32).astype(np.float64)
            if want.dtype in (np.float16, ml_dtypes.bfloat16):
                rtol, atol = max(rtol, 1e-2), max(atol, 1e-2)
            if not np.allclose(have, right, rtol=rtol, atol=atol, equal_nan=True):
                worst = np.nanmax(np.abs(have - right)) if have.size else 0
                return "wrong", f"{name}: off by {worst:.3g}, {have.ravel()[:4]} for {right.ravel()[:4]}"
    return "right", ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("precast")
    parser.add_argument("--only", default="*", help="a glob over the tests' names")
    parser.add_argument("--list", action="store_true", help="print every test and what was seen")
    parser.add_argument("--at-least", type=int, default=0, metavar="N", help="fail where fewer are right")
    args = parser.parse_args()
    precast = os.path.abspath(args.precast)
    warnings.simplefilter("ignore")
    from onnx.backend.test.case.node import collect_testcases

    counts, wrong, why = collections.Counter(), [], collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for case in sorted(collect_testcases(None), key=lambda c: c.name):
            if "expanded" in case.name or not fnmatch.fnmatch(case.name, args.only):
                continue
            inputs, outputs = (
                [np.asarray(x) if isinstance(x, np.generic) else x for x in side] for side in case.data_sets[0]
            )
            if not outputs or not all(plain(x) for x in [*inputs, *outputs]):
                counts["left out"] += 1
                continue
            if len(inputs) != len(case.model.graph.input):
                counts["left out"] += 1
                continue
            literal = run(precast, case, inputs, outputs, False, folder)
            data = run(precast, case, inputs, outputs, True, folder)
            verdict = "wrong" if "wrong" in (literal[0], data[0]) else literal[0]
            counts[verdict] += 1
            if verdict == "right" and data[0] == "refused":
                counts["right, of which refused as data"] += 1
            if verdict == "wrong":
                wrong.append(case.name)
                print(f"wrong: {case.name}: initializers {literal[0]} {literal[1]}; data {data[0]} {data[1]}", flush=True)
            elif args.list:
                print(f"{verdict}: {case.name}: {literal[1]}; data {data[0]} {data[1]}", flush=True)
            if verdict == "refused":
                why[literal[1][:90]] += 1
    for reason, n in why.most_common(40 if args.list else 0):
        print(f"{n:5} {reason}")
    print(", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    print(f"{counts['right']} passed, {counts['wrong']} failed, {counts['refused']} skipped")
    if counts["right"] < args.at_least:
        print(f"fewer than {args.at_least} are right")
        return 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
