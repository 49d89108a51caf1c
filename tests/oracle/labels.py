"""Solves tests/oracle/labels.json with HiGHS and writes the optima beside it.

    pip install highspy
    PRECAST_ORACLE=write cargo test -p precast-compiler --lib integer_program   # new problems
    python tests/oracle/labels.py

Variables of 0 or 1: the label of every storage and kernel (1 is 16-bit), and for every storage
whether a copy in the other format is made. A kernel that reads a storage of the other label forces
the copy. Nothing here knows that the program is a minimum cut. Prices are integers; the optimum is
priced again from the labels in integers, so that it does not depend on the solver's tolerances.
"""

import json
from pathlib import Path

import highspy

FOLDER = Path(__file__).parent


def solve(problem):
    h = highspy.Highs()
    h.setOptionValue("output_flag", False)
    h.setOptionValue("mip_rel_gap", 0.0)
    h.setOptionValue("mip_abs_gap", 0.5)
    terms = []

    def label(own):
        full, half = own
        x = h.addBinary()
        if full is None:
            h.addConstr(x >= 1)
        if half is None:
            h.addConstr(x <= 0)
        # full (1 - x) + half x, without the constant.
        terms.append(((half or 0) - (full or 0)) * x)
        return x

    stores = [label(s["own"]) for s in problem["stores"]]
    kernels = [label(k["own"]) for k in problem["kernels"]]
    copies = []
    for s in problem["stores"]:
        full, half = h.addBinary(), h.addBinary()
        terms.append(s["cast"][0] * full + s["cast"][1] * half)
        copies.append((full, half))
    for x, k in zip(kernels, problem["kernels"]):
        for s in k["reads"]:
            full, half = copies[s]
            h.addConstr(half >= x - stores[s])
            h.addConstr(full >= stores[s] - x)
        for s in k["writes"]:
            h.addConstr(stores[s] - x == 0)
    h.minimize(sum(terms[1:], terms[0]))
    if h.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    narrow = lambda x: round(h.val(x)) == 1
    return price(problem, [narrow(x) for x in stores], [narrow(x) for x in kernels])


def price(problem, stores, kernels):
    total = problem["fixed"]
    full, half = set(), set()
    for x, k in zip(kernels, problem["kernels"]):
        total += k["own"][x]
        (half if x else full).update(k["reads"])
    for i, (x, s) in enumerate(zip(stores, problem["stores"])):
        total += s["own"][x]
        if x and i in full:
            total += s["cast"][0]
        if not x and i in half:
            total += s["cast"][1]
    return total


def main():
    problems = json.loads((FOLDER / "labels.json").read_text())
    answers = [solve(p) for p in problems]
    (FOLDER / "labels.answers.json").write_text(json.dumps(answers) + "\n")
    print(f"{sum(a is not None for a in answers)} of {len(answers)} have a solution")


main()
