"""clang as a front end for Metal's shading language: preprocessing, rewriting, syntax trees."""
import json
import os
import re
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
SHIM = os.path.join(os.path.dirname(HERE), "shim")
CLANG = os.environ.get("MSL_CLANG", "clang-19")

LANGUAGE = ["-x", "cl", "-cl-std=clc++2021", "-cl-no-stdinc", "--target=x86_64-linux-gnu",
            "-Wno-unknown-attributes"]

# What OpenCL has and Metal has not. The generic address space stays, as clang copies structs between
# address spaces only with it; lint.py refuses what uses it otherwise.
STRICT = ["-Xclang", "-cl-ext=-__opencl_c_program_scope_global_variables,-__opencl_c_pipes,"
          "-__opencl_c_device_enqueue,-cl_khr_fp64,-__opencl_c_fp64"]

CONSTANT_BYTES = {"bool": 1, "char": 1, "uchar": 1, "short": 2, "ushort": 2, "half": 2, "int": 4,
                  "uint": 4, "float": 4}

CONSTANT = re.compile(
    r"__constant\s+(\w+)\s+(\w+)\s*\[\[\s*function_constant\s*\(\s*(\d+)\s*\)\s*\]\]\s*;")
CONSTANT_IS_DEFINED = re.compile(r"\bis_function_constant_defined\s*\(\s*(\w+)\s*\)")
LINE_MARKER = re.compile(rb'^# (\d+) "([^"]*)"[^\n]*\n', re.M)


class Refused(Exception):
    """A gate found something: the messages, one a line, each with the gate's name."""


def refuse(gate, messages):
    raise Refused("\n".join(f"{gate}: {message}" for message in messages))


def run(command):
    """Runs a compiler; returns success and what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stderr


class Source:
    """A source text, preprocessed, with its function constants made external variables: the values
    come when a kernel is specialised, as with Metal, and the optimiser folds them."""

    def __init__(self, path, work):
        self.path = path
        self.work = work
        self.constants = []  # (name, index, type)
        self.text = self._rewrite(self._preprocess())
        self.preprocessed = os.path.join(work, "source.i")
        with open(self.preprocessed, "w", encoding="utf-8") as file:
            file.write(self.text)
        self._find_regions()

    def _preprocess(self):
        output = os.path.join(self.work, "raw.i")
        is_done, said = run([CLANG, *LANGUAGE, "-I", SHIM, "-E", self.path, "-o", output])
        if not is_done:
            refuse("front end", [said.strip()])
        with open(output, encoding="utf-8") as file:
            return file.read()

    def _rewrite(self, text):
        messages = []

        def declare(match):
            constant_type, name, index = match.group(1), match.group(2), int(match.group(3))
            if constant_type not in CONSTANT_BYTES:
                messages.append(f"function constant {name}: type {constant_type}: expected one of "
                                + ", ".join(CONSTANT_BYTES))
            for other, other_index, _ in self.constants:
                if index == other_index:
                    messages.append(f"function constants {other} and {name} share index {index}")
            self.constants.append((name, index, constant_type))
            lines = "\n" * match.group(0).count("\n")
            return (f"extern __constant {constant_type} {name}; "
                    f"extern __constant bool {name}_is_defined;{lines}")

        text = CONSTANT_IS_DEFINED.sub(r"\1_is_defined", CONSTANT.sub(declare, text))
        if "function_constant" in text:
            messages.append("function_constant: expected only declarations of the form "
                            "'constant TYPE NAME [[function_constant(INDEX)]];'")
        if messages:
            refuse("signatures", messages)
        return text

    def _find_regions(self):
        """Which bytes of the preprocessed text come from which line of which file."""
        self.regions = []  # (offset of the first byte, file, line)
        for marker in LINE_MARKER.finditer(self.text.encode()):
            self.regions.append((marker.end(), marker.group(2).decode(), int(marker.group(1))))

    def _region(self, offset):
        low, high = 0, len(self.regions)
        while high - low > 1:
            middle = (low + high) // 2
            if self.regions[middle][0] <= offset:
                low = middle
            else:
                high = middle
        return self.regions[low]

    def is_users(self, offset):
        """Whether the text at this offset is the user's, not the shim's."""
        if offset < 0:
            return False
        file = self._region(offset)[1]
        return not file.startswith("<") and not file.startswith(SHIM)

    def place(self, offset):
        """'file:line' of an offset."""
        start, file, line = self._region(offset)
        return f"{file}:{line + self.text.encode()[start:offset].count(10)}"

    def check_strictly(self):
        """Gate 1."""
        is_done, said = run([CLANG, *LANGUAGE, *STRICT, "-Wall", "-Wextra", "-Werror",
                             "-Wno-unused-function", "-Wno-unused-const-variable",
                             "-Wno-unused-parameter",
                             "-fsyntax-only", self.preprocessed])
        if not is_done:
            refuse("front end", [said.strip()])

    def syntax_tree(self):
        done = subprocess.run([CLANG, *LANGUAGE, "-w", "-fsyntax-only", "-Xclang",
                               "-ast-dump=json", self.preprocessed],
                              capture_output=True, check=False)
        if done.returncode != 0:
            refuse("front end", [done.stderr.decode().strip()])
        return json.loads(done.stdout)


def offset_of(location):
    """The offset of a place in the preprocessed text, or -1."""
    return location.get("expansionLoc", location).get("offset", -1)


def begin_of(node):
    return offset_of(node.get("range", {}).get("begin", {}))


def end_of(node):
    """One past the last byte."""
    end = node.get("range", {}).get("end", {})
    end = end.get("expansionLoc", end)
    return end.get("offset", -1) + end.get("tokLen", 0)


def is_kernel(node):
    return node.get("kind") == "FunctionDecl" and any(
        part.get("kind") == "OpenCLKernelAttr" for part in node.get("inner", []))
