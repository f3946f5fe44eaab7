#!/usr/bin/env python3
"""Compiles Objective-C sources for macOS on ARM64 and checks what the objects need.

usage: check_objects.py INCLUDE_DIRECTORY... -- SOURCE...

Every undefined symbol must be the library's own (tkv_), of macOS's C library as far as include/
declares it, or one that the frameworks and the Objective-C runtime of macOS 13 have.
"""
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
CLANG = os.environ.get("MSL_CLANG", "clang-19")
FLAGS = ["-x", "objective-c", "-std=gnu11", "--target=arm64-apple-macos13", "-fobjc-arc", "-fblocks",
         "-ffreestanding", "-nostdlibinc", "-O2", "-Wall", "-Wextra", "-Werror"]

RUNTIME = {
    "_objc_msgSend", "_objc_msgSendSuper2", "_objc_retain", "_objc_release", "_objc_autorelease",
    "_objc_storeStrong", "_objc_retainAutorelease", "_objc_autoreleaseReturnValue",
    "_objc_retainAutoreleaseReturnValue", "_objc_retainAutoreleasedReturnValue",
    "_objc_claimAutoreleasedReturnValue", "_objc_unsafeClaimAutoreleasedReturnValue",
    "_objc_autoreleasePoolPush", "_objc_autoreleasePoolPop", "_objc_enumerationMutation",
    "_objc_alloc", "_objc_alloc_init", "_objc_opt_new", "_objc_opt_class", "_objc_retainBlock",
    "_objc_getProperty", "_objc_setProperty_atomic", "_objc_setProperty_nonatomic",
    "_objc_setProperty_atomic_copy", "_objc_setProperty_nonatomic_copy", "__objc_empty_cache",
    "___objc_personality_v0", "___CFConstantStringClassReference", "__NSConcreteStackBlock",
    "__NSConcreteGlobalBlock", "__Block_object_assign", "__Block_object_dispose",
    "_NSLocalizedDescriptionKey", "_MTLCreateSystemDefaultDevice", "_bzero", "_memset_pattern16",
    "___stack_chk_fail", "___stack_chk_guard", "___isPlatformVersionAtLeast",
}
RETAIN_OF_REGISTER = re.compile(r"_objc_(retain|release)_x\d+")
OWN_CLASSES = re.compile(r"_OBJC_((META)?CLASS|IVAR)_\$_TKV[\w.]+")
FRAMEWORK_CLASSES = re.compile(r"_OBJC_(META)?CLASS_\$_(NS(Object|String|Number|Error|Array|"
                               r"MutableArray|Dictionary|MutableDictionary)|MTL(CompileOptions|"
                               r"FunctionConstantValues))")


def c_library():
    """Functions that the headers beside this file declare."""
    names = set()
    directory = os.path.join(HERE, "include")
    for name in os.listdir(directory):
        with open(os.path.join(directory, name), encoding="utf-8") as file:
            names |= set(re.findall(r"(\w+)\(", file.read()))
    return {"_" + name for name in names}


def nm():
    for name in ("llvm-nm-19", "llvm-nm"):
        if subprocess.run(["which", name], capture_output=True, check=False).returncode == 0:
            return name
    sys.exit("check_objects: needs llvm-nm (Debian package llvm-19)")


def check(source, directories, work):
    target = os.path.join(work, os.path.basename(source) + ".o")
    includes = ["-isystem", os.path.join(HERE, "include"), "-isystem",
                os.path.join(os.path.dirname(HERE), "include")]
    includes += [f"-I{directory}" for directory in directories]
    done = subprocess.run([CLANG, *FLAGS, *includes, "-c", source, "-o", target], check=False)
    if done.returncode != 0:
        return [f"{source} does not compile for macOS"]
    with open(target, "rb") as file:
        if file.read(4) != b"\xcf\xfa\xed\xfe":
            return [f"{target} is no Mach-O object"]
    listing = subprocess.run([nm(), "--undefined-only", "--just-symbol-name", target],
                             capture_output=True, text=True, check=True).stdout.split()
    allowed = RUNTIME | c_library()
    return [f"{source}: macOS has no {name}, or nobody has listed it here" for name in listing
            if name not in allowed and not name.startswith("_tkv_")
            and not RETAIN_OF_REGISTER.fullmatch(name) and not FRAMEWORK_CLASSES.fullmatch(name)
            and not OWN_CLASSES.fullmatch(name)]


def main():
    split = sys.argv.index("--")
    directories, sources = sys.argv[1:split], sys.argv[split + 1:]
    messages = []
    with tempfile.TemporaryDirectory() as work:
        for source in sources:
            messages += check(source, directories, work)
    for message in messages:
        print(message)
    print(f"{len(sources)} sources compiled for macOS, {len(messages)} complaints")
    return 1 if messages or not sources else 0


if __name__ == "__main__":
    sys.exit(main())
