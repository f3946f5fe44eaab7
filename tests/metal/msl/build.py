"""Compiles checked sources: a library once, then each kernel with its function constants."""
import os
import re
import subprocess

from front_end import CLANG, CONSTANT_BYTES, LANGUAGE, refuse, run
from signatures import trampolines

MAX_THREADGROUP_BYTES = 32768
MAX_THREADGROUP_VARIABLES = 31

# A threadgroup variable in LLVM's text: a static object of the kernel.
VARIABLE = re.compile(r"^@_ZZ(\d+)(\w+) = internal (?:unnamed_addr )?global (.*) "
                      r"(?:undef|zeroinitializer), align (\d+).*$", re.M)


def processor_flags():
    """Half precision in hardware, where this machine has it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = set(re.search(r"^flags\s*: (.*)$", file.read(), re.M).group(1).split())
    except (OSError, AttributeError):
        return []
    return ["-march=x86-64-v3"] if {"avx2", "f16c", "fma", "bmi2"} <= flags else []


def compile_flags(math, sanitizer):
    flags = ["-O2", "-gline-tables-only", "-fPIC", "-w", *processor_flags()]
    flags += ["-cl-fast-relaxed-math"] if math == "relaxed" else ["-ffp-contract=off"]
    if sanitizer != "none":
        flags += [f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer"]
    return flags


def compiler(command):
    is_done, said = run(command)
    if not is_done:
        refuse("compiler", [said.strip()])


def split_variable(length, rest):
    """'4rope' of _ZZ<length><kernel>E<length><variable>"""
    kernel, rest = rest[:int(length)], rest[int(length):]
    match = re.fullmatch(r"E(\d+)(\w+)", rest) or re.fullmatch(r"\w*?E(\d+)(\w+)", rest)
    return kernel, match.group(2)[:int(match.group(1))] + match.group(2)[int(match.group(1)):]


def take_out_variables(text):
    """Makes threadgroup variables external, so that the optimiser knows nothing of their content.
    Returns the text and {kernel: [(symbol, type, alignment)]}."""
    variables = {}
    renamed = {}

    def take(match):
        kernel, name = split_variable(match.group(1), match.group(2))
        symbol = f'@"{kernel}::{name}"'
        variables.setdefault(kernel, []).append((symbol, match.group(3), match.group(4)))
        renamed[f"@_ZZ{match.group(1)}{match.group(2)}"] = symbol
        return f"{symbol} = external global {match.group(3)}, align {match.group(4)}"

    text = VARIABLE.sub(take, text)
    text = re.sub(r"@_ZZ\w+", lambda match: renamed.get(match.group(0), match.group(0)), text)
    return text, variables


def storage(types, variables):
    """LLVM's text of the variables' storage and of the table that tells the executor of them."""
    lines = list(types)
    lines += [f"{symbol} = global {kind} zeroinitializer, align {alignment}"
              for symbol, kind, alignment in variables]
    entries = ", ".join(
        f"{{ ptr, i64 }} {{ ptr {symbol}, i64 ptrtoint (ptr getelementptr ({kind}, ptr null, i32 1) "
        "to i64) }" for symbol, kind, _ in variables)
    n = len(variables)
    lines.append(f"@msl_threadgroup_memory = constant [{n} x {{ ptr, i64 }}] "
                 + (f"[{entries}]" if n else "zeroinitializer"))
    lines.append(f"@msl_n_threadgroup_memory = constant i32 {n}")
    return "\n".join(lines) + "\n"


def threadgroup_bytes(path):
    """Bytes of the variables in an object file of storage."""
    listing = subprocess.run(["nm", "-S", "--defined-only", path], capture_output=True, text=True,
                             check=True).stdout
    return sum(int(line.split()[1], 16) for line in listing.splitlines()
               if "::" in line and len(line.split()) == 4)


def build_library(source, kernels, directory, math, sanitizer):
    """Leaves library.bc, storage_KERNEL.o and `info`, which the fake Metal reads."""
    unit = os.path.join(directory, "library.cl")
    with open(unit, "w", encoding="utf-8") as file:
        file.write(source.text + trampolines(kernels))
    text_path = os.path.join(directory, "library.ll")
    flags = compile_flags(math, sanitizer)
    compiler([CLANG, *LANGUAGE, *flags, "-Xclang", "-disable-llvm-passes", "-S", "-emit-llvm", unit,
              "-o", text_path])
    with open(text_path, encoding="utf-8") as file:
        text, variables = take_out_variables(file.read())
    with open(text_path, "w", encoding="utf-8") as file:
        file.write(text)
    compiler([CLANG, "-x", "ir", "-w", "-Xclang", "-disable-llvm-passes", "-emit-llvm", "-c",
              text_path, "-o", os.path.join(directory, "library.bc")])
    types = re.findall(r"^%.* = type .*$", text, re.M)
    info = [f"constant {name} {index} {CONSTANT_BYTES[kind]}"
            for name, index, kind in source.constants]
    for kernel in kernels:
        n_bytes = build_storage(directory, kernel.name, types, variables.get(kernel.name, []),
                                sanitizer)
        info.append(f"kernel {kernel.name} {mask(kernel.buffers)} {mask(kernel.threadgroups)} "
                    f"{kernel.max_threads} {n_bytes}")
    with open(os.path.join(directory, "info"), "w", encoding="utf-8") as file:
        file.write("\n".join(info) + "\n")


def mask(indices):
    return sum(1 << index for index in indices)


def build_storage(directory, name, types, variables, sanitizer):
    path = os.path.join(directory, f"storage_{name}")
    with open(path + ".ll", "w", encoding="utf-8") as file:
        file.write(storage(types, variables))
    compiler([CLANG, "-x", "ir", "-w", *compile_flags("strict", sanitizer), "-c", path + ".ll", "-o",
              path + ".o"])
    n_bytes = 0
    if variables:
        plain = path + ".plain.o"  # a sanitizer adds to the sizes
        compiler([CLANG, "-x", "ir", "-w", "-c", path + ".ll", "-o", plain])
        n_bytes = threadgroup_bytes(plain)
    if n_bytes > MAX_THREADGROUP_BYTES:
        refuse("signatures", [f"kernel {name}: {n_bytes} bytes of threadgroup memory: at most "
                              f"{MAX_THREADGROUP_BYTES}"])
    if len(variables) > MAX_THREADGROUP_VARIABLES:
        refuse("signatures", [f"kernel {name}: {len(variables)} threadgroup variables: at most "
                              f"{MAX_THREADGROUP_VARIABLES}"])
    return n_bytes


def specialise(library, name, constants, output, math, sanitizer):
    """Builds a shared object of one kernel. constants: {index: bytes}. The optimiser sees the
    kernel, the values and nothing else of the library."""
    declared = []
    with open(os.path.join(library, "info"), encoding="utf-8") as file:
        for line in file:
            if line.startswith("constant "):
                _, constant, index, n_bytes = line.split()
                declared.append((constant, int(index), int(n_bytes)))
    lines = []
    for constant, index, n_bytes in declared:
        value = constants.get(index)
        lines.append(f"@{constant}_is_defined = constant i8 {int(value is not None)}")
        if value is not None:
            bits = int.from_bytes(value[:n_bytes], "little")
            lines.append(f"@{constant} = constant i{8 * n_bytes} {bits}")
    lines += [f"declare void @msl_enter_{name}(ptr)",
              "define void @msl_enter(ptr %arguments) {",
              f"  call void @msl_enter_{name}(ptr %arguments)", "  ret void", "}"]
    stem = output + ".part"
    with open(stem + ".ll", "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    # The needed parts of the library are linked in before anything is optimised.
    compiler([CLANG, "-x", "ir", *compile_flags(math, sanitizer), "-Xclang", "-mlink-builtin-bitcode",
              "-Xclang", os.path.join(library, "library.bc"), "-c", stem + ".ll", "-o", stem + ".o"])
    check_constants(stem + ".o", name, declared)
    # The program that loads the object has libm. Conversions of half that the processor lacks are
    # in the compiler's library.
    linker = ["ld", "-shared"] if processor_flags() else [CLANG, "-shared"]
    compiler([*linker, stem + ".o", os.path.join(library, f"storage_{name}.o"), "-o", stem + ".so"])
    os.rename(stem + ".so", output)
    for suffix in (".ll", ".o"):
        os.remove(stem + suffix)


def check_constants(path, name, declared):
    listing = subprocess.run(["nm", "--undefined-only", path], capture_output=True, text=True,
                             check=True).stdout
    undefined = {line.split()[-1] for line in listing.splitlines()}
    missing = [f"{constant} (index {index})" for constant, index, _ in declared
               if constant in undefined]
    if missing:
        refuse("specialisation", [f"kernel {name}: function constants without a value: "
                                  + ", ".join(missing)])
