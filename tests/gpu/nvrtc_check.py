"""Compiles kernel texts with NVRTC for their architectures; prints registers and spills.

usage: nvrtc_check.py FOLDER_OF_NVRTC FOLDER_OF_TEXTS REPORT [--all]

FOLDER_OF_TEXTS is what the example `cuda_texts` writes: prelude.cuh, options, and a folder of texts
for each architecture. Exits with 1 if a text does not compile or a row program spills.

Every text is compiled for MAIN, and every form of it for every architecture that has it: texts differ
from architecture to architecture in how they cut work up, and are compiled wherever they do. With --all
every text is compiled for every architecture.
"""

import ctypes
import multiprocessing
import os
import re
import sys
import time
from pathlib import Path

# Kernels compiled at once: the prelude is read once for all of them.
UNIT = 12

# The architecture that every text is compiled for that has it.
MAIN = "sm_90a"


def load(folder):
    ctypes.CDLL(str(folder / "libnvrtc-builtins.so.13.0"), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(folder / "libnvrtc.so.13"))


def compile_text(text, options):
    """Whether it compiled, the size of the cubin, and the log."""
    program = ctypes.c_void_p()
    status = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None
    )
    assert status == 0, f"nvrtcCreateProgram: {status}"
    array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
    status = nvrtc.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    cubin = ctypes.c_size_t()
    if status == 0:
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(cubin))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return status == 0 and cubin.value > 0, log.value.decode()


def facts(log):
    """Registers and spilled bytes by kernel, from what --ptxas-options=-v prints."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        entry = part[: part.index("'")]
        registers = re.search(r"Used (\d+) registers", part)
        spill = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        found[entry] = (int(registers[1]), int(spill[1]) + int(spill[2]))
    return found


def job(unit):
    arch, names = unit
    folder = texts / arch
    options = (texts / "options").read_text().split() + [
        f"--gpu-architecture={arch}",
        "--ptxas-options=-v",
    ]
    prelude = (texts / "prelude.cuh").read_text()
    bodies = [(folder / f"{n}.cu").read_text() for n in names]
    fine, log = compile_text("\n".join([prelude, *bodies]), options)
    if fine:
        return [(arch, n, *facts(log).get(n, (-1, -1)), "") for n in names]
    if len(names) > 1:
        # One by one, to say which.
        return [row for n in names for row in job((arch, [n]))]
    return [(arch, names[0], -1, -1, log)]


def family(name):
    return "rows" if name.startswith("rows_") else re.sub(r"_[0-9a-f]{16}$", "", name)


def same_code(name, text):
    """The text without comments and its own name: equal ones are compiled once."""
    return re.sub(r"//.*", "", text).replace(name, "")


# What is other code for a compiler's back end, not only other strides, extents and epilogues.
FLAGS = r"^(?:typedef .*|#define (?:TENSOR|SPLIT|KIND|MASK|D|DP|VEC) .*)$"
SHAPES = r"several blocks|results of pass|extern __shared__|tile0|spaces|\[c\]\[|int e = |load<\d>|i64 row"


def form(name, text):
    """What other texts of the same code have too: formats and main flags of a hand-written kernel; the
    name of a row program and how it runs."""
    if name.startswith("rows_"):
        return re.sub(r"[0-9a-f]{16}$", "", name) + "".join(sorted(set(re.findall(SHAPES, text))))
    return family(name) + "".join(re.findall(FLAGS, text, re.M))


def main():
    report, everything = Path(sys.argv[3]), "--all" in sys.argv[4:]
    folders = sorted((p for p in texts.iterdir() if p.is_dir()), key=lambda p: p.name != MAIN)
    units, repeats, shared, main_has = [], 0, 0, set()
    for folder in folders:
        seen, forms, rows, hand = set(), set(), [], []
        for path in sorted(folder.glob("*.cu")):
            text = path.read_text()
            key = same_code(path.stem, text)
            if key in seen:
                repeats += 1
                continue
            seen.add(key)
            known = form(path.stem, text)
            if not everything and known in forms and key in main_has:
                shared += 1
                continue
            forms.add(known)
            (rows if path.stem.startswith("rows_") else hand).append(path.stem)
        if folder.name == MAIN:
            main_has = seen
        units += [(folder.name, rows[i : i + UNIT]) for i in range(0, len(rows), UNIT)]
        # Hand-written kernels bring functions of their own, which may share names.
        units += [(folder.name, [n]) for n in hand]
    if not units:
        sys.exit(f"{texts} holds no kernels")
    begin = time.time()
    with multiprocessing.Pool(os.cpu_count()) as pool:
        results = [row for part in pool.imap_unordered(job, units) for row in part]
    results.sort()
    with report.open("w") as out:
        print("arch", "kernel", "registers", "spilled bytes", sep="\t", file=out)
        for arch, name, registers, spilled, _ in results:
            print(arch, name, registers, spilled, sep="\t", file=out)
    groups = {}
    for arch, name, registers, spilled, _ in results:
        groups.setdefault((arch, family(name)), []).append((registers, spilled, name))
    print(f"{'':8} {'family':32} {'kernels':>8} {'registers':>10} {'spilling':>9}")
    for (arch, kind), rows in sorted(groups.items()):
        spilling = sum(s > 0 for _, s, _ in rows)
        most = max(r for r, _, _ in rows)
        print(f"{arch:8} {kind:32} {len(rows):8} {most:10} {spilling:9}")
    faults = [r for r in results if r[4]]
    for arch, name, _, _, log in faults:
        print(f"\n{arch} {name} does not compile:\n{log}")
    silent = [r for r in results if not r[4] and r[2] < 0]
    for arch, name, *_ in silent:
        print(f"{arch} {name}: the compiler said nothing of it")
    spills = [r for r in results if family(r[1]) == "rows" and r[3] > 0]
    for arch, name, registers, spilled, _ in spills:
        print(f"{arch} {name} spills {spilled} bytes with {registers} registers")
    seconds = time.time() - begin
    print(f"{len(results)} kernels in {seconds:.0f} s, {repeats} repeats not compiled, {shared} of known "
          f"forms compiled for {MAIN} alone; {report}")  # fmt: skip
    sys.exit(bool(faults or silent or spills))


texts = Path(sys.argv[2])
nvrtc = load(Path(sys.argv[1]))
if __name__ == "__main__":
    main()
