"""Runs the Python blocks of docs/EXPORTING.md, in order, in an empty folder.

    python check_exporting.py

An assertion that fails, or an exporter that does, ends with the block's line in the document.
Needs requirements.txt, and transformers for the last section.
"""

import os
import re
import sys
import tempfile
import traceback
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))
DOCUMENT = os.path.join(HERE, "..", "..", "docs", "EXPORTING.md")


def blocks(text):
    """(line of the block's first statement, its source)"""
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text[: match.start(1)].count("\n") + 1, match.group(1)


def main():
    warnings.simplefilter("ignore")
    with open(DOCUMENT) as file:
        found = list(blocks(file.read()))
    namespace = {"__name__": "exporting"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for line, source in found:
            # Padding makes line numbers in a traceback those of the document.
            code = compile("\n" * (line - 1) + source, "docs/EXPORTING.md", "exec")
            try:
                exec(code, namespace)
            except Exception:
                traceback.print_exc()
                print(f"failed: the block at docs/EXPORTING.md:{line}")
                return 1
            print(f"ok: the block at docs/EXPORTING.md:{line}", flush=True)
        os.chdir(HERE)
    print(f"{len(found)} passed, 0 failed")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
