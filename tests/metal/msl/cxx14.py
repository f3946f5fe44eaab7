"""Gate 3: a second parse as plain C++14, the language that Metal 3 is built on."""
import os
import re

from front_end import CLANG, SHIM, refuse, run

# The qualifiers vanish.
MEANINGS = ["-D__global=", "-D__constant=const", "-D__local=", "-D__private=", "-D__kernel="]
ATTRIBUTE = re.compile(r"\[\[[^\]]*\]\]")
HALF_LITERAL = re.compile(r"\b(\d+\.\d*(?:[eE][-+]?\d+)?|0[xX][\da-fA-F.]+[pP][-+]?\d+)[hH]\b")
FUNCTION_CONSTANT = re.compile(r"\[\[\s*function_constant\s*\([^)]*\)\s*\]\]")


def check(path, work):
    """The untouched text, not the rewritten one: attributes go, function constants get values that
    are no constant expressions."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    text = FUNCTION_CONSTANT.sub("= msl_unknown()", text)
    text = HALF_LITERAL.sub(r"\1f16", ATTRIBUTE.sub("", text))
    copy = os.path.join(work, "cxx14.metal")
    with open(copy, "w", encoding="utf-8") as file:
        file.write("typedef _Float16 half;\nint msl_unknown();\n#define is_function_constant_defined(name) true\n"
                   f'#line 1 "{path}"\n{text}')
    is_done, said = run([CLANG, "-x", "c++", "-std=c++14", "-fsyntax-only", "-Wno-everything", "-ferror-limit=4",
                         "-Werror=c++17-extensions", "-Werror=c++20-extensions",
                         "-Werror=vla-cxx-extension", "-I", SHIM, *MEANINGS, copy])
    if not is_done:
        refuse("C++14", [said.strip()])
