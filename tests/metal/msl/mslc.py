#!/usr/bin/env python3
"""Checks and compiles Metal's shading language for the executor.

usage: mslc.py check FILE
       mslc.py library FILE CACHE [--math strict|relaxed] [--sanitize none|address|thread]
       mslc.py specialise LIBRARY KERNEL [--constant INDEX=HEX ...] [--math ...] [--sanitize ...]

check runs the gates that need no execution, `library` as well; it prints the directory of the
result, specialise the path of the shared object. Both keep what they made under a hash of all that
went into it. Messages of a gate begin with its name; the exit status is then 1.
"""
import argparse
import hashlib
import os
import shutil
import sys
import tempfile

import build
import cxx14
import lint
import signatures
from front_end import CLANG, HERE, SHIM, Refused, Source


def digest_of(files, *texts):
    digest = hashlib.sha256()
    for path in sorted(files):
        with open(path, "rb") as file:
            digest.update(file.read())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:24]


def tools():
    """Every file that has a say in the result, besides the source."""
    files = [os.path.join(HERE, name) for name in os.listdir(HERE) if name.endswith(".py")]
    for directory, _, names in os.walk(SHIM):
        files += [os.path.join(directory, name) for name in names]
    return files


def run_gates(path, work):
    source = Source(path, work)
    source.check_strictly()
    tree = source.syntax_tree()
    lint.check(source, tree)
    cxx14.check(path, work)
    return source, signatures.check(source, tree)


def check(arguments):
    with tempfile.TemporaryDirectory() as work:
        run_gates(arguments.file, work)


def make_library(arguments):
    name = digest_of([arguments.file, *tools()], CLANG, arguments.math, arguments.sanitize,
                     *build.processor_flags())
    result = os.path.join(arguments.cache, name)
    if not os.path.isdir(result):
        os.makedirs(arguments.cache, exist_ok=True)
        work = tempfile.mkdtemp(dir=arguments.cache)
        try:
            # The compiler's messages and debugging information name this copy, which stays.
            kept = os.path.join(arguments.cache, name + ".metal")
            copy = os.path.join(work, "copy")
            shutil.copyfile(arguments.file, copy)
            os.rename(copy, kept)
            source, kernels = run_gates(kept, work)
            build.build_library(source, kernels, work, arguments.math, arguments.sanitize)
            try:
                os.rename(work, result)
            except OSError:  # another process was faster
                if not os.path.isdir(result):
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    print(result)


def specialise(arguments):
    constants = {}
    for text in arguments.constant:
        index, _, value = text.partition("=")
        constants[int(index)] = bytes.fromhex(value)
    # runtime/library.m knows this name, too, and does not ask for what exists.
    name = arguments.kernel + "".join("_" + text.replace("=", "-") for text in arguments.constant)
    result = os.path.join(arguments.library, f"{name}.so")
    if not os.path.exists(result):
        part = f"{result}.{os.getpid()}"
        build.specialise(arguments.library, arguments.kernel, constants, part, arguments.math,
                         arguments.sanitize)
        os.rename(part, result)
    print(result)


def main():
    parser = argparse.ArgumentParser(description="checks and compiles Metal kernels")
    commands = parser.add_subparsers(dest="command", required=True)
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--math", choices=["strict", "relaxed"], default="strict")
    options.add_argument("--sanitize", choices=["none", "address", "thread"], default="none")
    command = commands.add_parser("check")
    command.add_argument("file")
    command.set_defaults(run=check)
    command = commands.add_parser("library", parents=[options])
    command.add_argument("file")
    command.add_argument("cache")
    command.set_defaults(run=make_library)
    command = commands.add_parser("specialise", parents=[options])
    command.add_argument("library")
    command.add_argument("kernel")
    command.add_argument("--constant", action="append", default=[])
    command.set_defaults(run=specialise)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
