#!/usr/bin/env python3
"""Feeds the pieces of static.metal to mslc.py and compares what it reports with what it is to."""
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
MSLC = os.path.join(os.path.dirname(HERE), "msl", "mslc.py")


def pieces():
    """(line, expectation, text)"""
    with open(os.path.join(HERE, "static.metal"), encoding="utf-8") as file:
        parts = re.split(r"^//= (.*)$", file.read(), flags=re.M)
    line = parts[0].count("\n") + 1
    for expected, text in zip(parts[1::2], parts[2::2]):
        yield line, expected, f"{parts[0]}\n#line {line + 1} \"static.metal\"{text}"
        line += text.count("\n")


def report(text, work):
    path = os.path.join(work, "piece.metal")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    done = subprocess.run([sys.executable, MSLC, "library", path, os.path.join(work, "cache")],
                          capture_output=True, text=True, check=False)
    return "accepted" if done.returncode == 0 else done.stderr


def main():
    n_checked = 0
    n_wrong = 0
    with tempfile.TemporaryDirectory() as work:
        for line, expected, text in pieces():
            said = report(text, work)
            gate, _, detail = expected.partition(": ")
            n_checked += 1
            if not said.startswith(gate) or detail not in said:
                n_wrong += 1
                print(f"static.metal:{line}: expected '{expected}', got:\n{said}")
    print(f"{n_checked} pieces, {n_wrong} not as expected")
    return 1 if n_wrong or n_checked < 50 else 0


if __name__ == "__main__":
    sys.exit(main())
