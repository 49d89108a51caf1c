"""Solves tests/oracle/structures.json with HiGHS and writes the optima beside it.

    pip install highspy
    PRECAST_ORACLE=write cargo test -p precast-compiler --lib integer_program   # new problems
    python tests/oracle/structures.py

Every class that is needed takes one of its candidates, every candidate needs its children, and every
class that is needed is paid once, however many need it. Classes need only later ones, so no choice is
cyclic.
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
    needed = [h.addBinary() for _ in problem["classes"]]
    terms, taken = [], []
    for x, candidates in zip(needed, problem["classes"]):
        take = [h.addBinary() for _ in candidates]
        taken.append(take)
        h.addConstr(sum(take[1:], take[0]) >= x)
        for t, k in zip(take, candidates):
            terms.append(k["price"] * t)
            for child in k["children"]:
                h.addConstr(needed[child] >= t)
    for root in problem["roots"]:
        h.addConstr(needed[root] >= 1)
    h.minimize(sum(terms[1:], terms[0]))
    if h.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    # In integers, over what the roots need.
    pick = [max(range(len(t)), key=lambda i: h.val(t[i])) for t in taken]
    seen, stack = set(), list(problem["roots"])
    while stack:
        c = stack.pop()
        if c not in seen:
            seen.add(c)
            stack.extend(problem["classes"][c][pick[c]]["children"])
    return sum(problem["classes"][c][pick[c]]["price"] for c in seen)


def main():
    problems = json.loads((FOLDER / "structures.json").read_text())
    answers = [solve(p) for p in problems]
    (FOLDER / "structures.answers.json").write_text(json.dumps(answers) + "\n")
    print(f"{sum(a is not None for a in answers)} of {len(answers)} have a solution")


main()
