#!/usr/bin/env python3
"""Takes the barriers out of a source of kernels, one at a time, and runs tests that must notice.

usage: remove_barriers.py SOURCE TEST...

The tests are programs that use the fake Metal, best built for ThreadSanitizer. A barrier whose loss
nobody notices is either not needed or not tested.
"""
import os
import re
import subprocess
import sys
import tempfile

BARRIER = re.compile(r"\b(?:threadgroup|simdgroup)_barrier\([^()]*\);")


def is_noticed(source, tests):
    """Between atomic operations nothing races, and only one order of threads shows the loss."""
    for order in ("forward", "reverse"):
        environment = {**os.environ, "FAKE_METAL_SOURCE": source, "FAKE_METAL_ORDER": order,
                       "TSAN_OPTIONS": os.environ.get("TSAN_OPTIONS", "") + ":halt_on_error=1"}
        for test in tests:
            if subprocess.run([test], env=environment, capture_output=True, check=False).returncode:
                return True
    return False


def line_of(text, offset):
    """Where an offset is, by the #line directives before it."""
    before = text[:offset]
    directives = list(re.finditer(r'^#line (\d+) "([^"]*)"\n', before, re.M))
    if not directives:
        return f"line {before.count(chr(10)) + 1}"
    last = directives[-1]
    return f"{last.group(2)}:{int(last.group(1)) + before[last.end():].count(chr(10))}"


def main():
    source, tests = sys.argv[1], sys.argv[2:]
    with open(source, encoding="utf-8") as file:
        text = file.read()
    if is_noticed(source, tests):
        sys.exit("the tests fail with all barriers in place")
    n_missed = 0
    barriers = list(BARRIER.finditer(text))
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "kernels.metal")
        for barrier in barriers:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text[:barrier.start()] + ";" + text[barrier.end():])
            noticed = is_noticed(path, tests)
            n_missed += not noticed
            print(f"{line_of(text, barrier.start())}: {'noticed' if noticed else 'NOT NOTICED'}",
                  flush=True)
    print(f"{len(barriers)} barriers, {n_missed} not noticed")
    return 1 if n_missed or not barriers else 0


if __name__ == "__main__":
    sys.exit(main())
