"""Writes a C++ file that compiles only where the declarations of the CUDA backend agree with
NVIDIA's headers: the value of every constant that the backend names, and of every function that it
calls the number of parameters, and what each is and its size.

usage: headers.py OUTPUT    (in the root of the repository)
"""

import os
import re
import sys
from pathlib import Path

BACKEND = Path("runtime/src/cuda")
# cudarc's features that decide which of its declarations are compiled.
FEATURES = {"cuda-13000", "cudnn-09021"}
# Numbers that the backend writes itself.
WRITTEN = {
    "CU_STREAM_NON_BLOCKING": 1,
    "CU_STREAM_CAPTURE_MODE_RELAXED": 2,
    "CU_EVENT_DISABLE_TIMING": 2,
    "CUBLAS_OP_N": 0,
    "CUBLAS_OP_T": 1,
    "CUBLAS_STATUS_NOT_INITIALIZED": 1,
    "CUBLAS_STATUS_ALLOC_FAILED": 3,
    "CUBLAS_STATUS_INVALID_VALUE": 7,
    "CUBLAS_STATUS_ARCH_MISMATCH": 8,
    "CUBLAS_STATUS_MAPPING_ERROR": 11,
    "CUBLAS_STATUS_EXECUTION_FAILED": 13,
    "CUBLAS_STATUS_INTERNAL_ERROR": 14,
    "CUBLAS_STATUS_NOT_SUPPORTED": 15,
    "CUDNN_STATUS_SUCCESS": 0,
    "CUDA_SUCCESS": 0,
    "NVRTC_SUCCESS": 0,
}
# A letter for what a parameter is: a pointer, an integer of 1, 4 or 8 bytes, a float.
LETTERS = {
    "c_int": "4",
    "c_uint": "4",
    "Status": "4",
    "cu::CUdevice": "4",
    "c_ulonglong": "8",
    "usize": "8",
    "u64": "8",
    "i64": "8",
    "cu::CUdeviceptr": "8",
    "u8": "1",
    "f32": "f",
    "()": "v",
    "Ptr": "p",
}
# cudarc's types of handles and descriptors, which are pointers.
POINTERS = re.compile(r"(cu|lt|dnn)::\w+")


def cudarc():
    version = re.search(r'name = "cudarc"\nversion = "([^"]+)"', Path("Cargo.lock").read_text())[1]
    home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    found = sorted(home.glob(f"registry/src/*/cudarc-{version}/src"))
    if not found:
        sys.exit(f"the source of cudarc {version} is not below {home}")
    return found[0]


def constants(folder):
    """Values of the enumerators that are compiled, by name."""
    values, compiled = {}, True
    inside = False
    for line in folder.read_text().splitlines():
        if found := re.match(r"\s*#\[cfg\((.*)\)\]$", line):
            features = set(re.findall(r'feature = "([^"]+)"', found[1]))
            compiled = bool(features & FEATURES) or not features
        elif re.match(r"\s*#\[", line):
            continue
        elif re.match(r"pub enum \w+ \{", line):
            inside = True
            keep = compiled
            compiled = True
        elif line == "}":
            inside = False
            compiled = True
        elif inside:
            if found := re.match(r"\s*(\w+) = (-?\d+),", line):
                if keep and compiled:
                    values[found[1]] = int(found[2])
                compiled = True
        elif found := re.match(r"\s*pub const (\w+): \w+ = \w+::(\w+);", line):
            # Another name of an enumerator.
            if found[2] in values:
                values[found[1]] = values[found[2]]
            compiled = True
        else:
            compiled = True
    return values


def letter(kind):
    kind = kind.strip()
    if kind.startswith(("*mut ", "*const ")):
        return "p"
    if kind in LETTERS:
        return LETTERS[kind]
    if POINTERS.fullmatch(kind):
        return "p"
    sys.exit(f"what is `{kind}`?")


def functions(text):
    """Names and signatures of what is declared in `functions!`: result, then parameters."""
    for block in re.findall(r"^functions! \{\n(.*?)^\}", text, re.S | re.M):
        block = re.sub(r"//[^\n]*", "", block)
        for name, parameters, result in re.findall(r"fn (\w+)\((.*?)\) -> ([^;]+);", block, re.S):
            kinds = [p.split(":", 1)[1] for p in parameters.split(",") if p.strip()]
            yield name, letter(result) + "".join(letter(k) for k in kinds)


def main():
    sources = {p: p.read_text() for p in sorted(BACKEND.rglob("*.rs"))}
    named = set()
    for text in sources.values():
        code = re.sub(r"//[^\n]*", "", text)
        # A constant of an enumeration; names of variables and of macros stand alone.
        named |= set(re.findall(r"\w+::((?:CUDNN|CUBLAS|CUBLASLT|CUDA|CU)_\w+)", code))
        if "use Name::*" in code:
            named |= set(re.findall(r"\b(CUDNN_ATTR_\w+)", code))
    values = {}
    root = cudarc()
    for library in ("driver", "cublaslt", "cudnn"):
        values |= constants(root / library / "sys/mod.rs")
    missing = named - values.keys()
    if missing:
        sys.exit(f"cudarc does not declare {sorted(missing)}")
    calls = [call for text in sources.values() for call in functions(text)]
    if len(named) < 100 or len(calls) < 60:
        sys.exit(f"{len(named)} constants and {len(calls)} functions are too few to be all")
    lines = [
        "// Written by tests/gpu/headers.py.",
        # The headers of the 16-bit types want a standard library of NVIDIA's own.
        "#define __CUDA_FP16_H__",
        "#define __CUDA_BF16_H__",
        "struct __half;",
        "struct __nv_bfloat16;",
        "#include <cublasLt.h>",
        "#include <cuda.h>",
        "#include <cudnn.h>",
        "#include <nvrtc.h>",
        "#include <cstddef>",
        "#include <type_traits>",
        "template <class T> constexpr char letter() {",
        "  if (std::is_void_v<T>) return 'v';",
        "  if (std::is_pointer_v<T>) return 'p';",
        "  if (std::is_floating_point_v<T>) return sizeof(T) == 4 ? 'f' : 'd';",
        "  return '0' + sizeof(T);",
        "}",
        "template <> constexpr char letter<void>() { return 'v'; }",
        "template <class R, class... A> constexpr bool is(R (*)(A...), const char *want) {",
        "  const char have[] = {letter<R>(), letter<A>()..., 0};",
        "  for (size_t i = 0;; i++) {",
        "    if (have[i] != want[i]) return false;",
        "    if (!have[i]) return true;",
        "  }",
        "}",
    ]
    for name in sorted(named):
        lines.append(f'static_assert((long long)({name}) == {values[name]}, "{name}");')
    for name, value in WRITTEN.items():
        lines.append(f'static_assert((long long)({name}) == {value}, "{name}");')
    for name, signature in calls:
        lines.append(f'static_assert(is(&{name}, "{signature}"), "{name}");')
    # `Candidate` in api.rs, field by field.
    lines += [
        "using Result = cublasLtMatmulHeuristicResult_t;",
        "static_assert(sizeof(cublasLtMatmulAlgo_t) == 64);",
        "static_assert(sizeof(Result) == 96 && offsetof(Result, algo) == 0);",
        "static_assert(offsetof(Result, workspaceSize) == 64 && offsetof(Result, state) == 72);",
        "static_assert(offsetof(Result, wavesCount) == 76 && offsetof(Result, reserved) == 80);",
    ]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n")
    print(f"{len(named) + len(WRITTEN)} constants, {len(calls)} functions")


main()
