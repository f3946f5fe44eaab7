"""Man pages and completions against the option tables that they were made of.

usage: check_command_files.py man | bash | zsh | fish TABLES FOLDER

Ends with 77 if the program that reads them is not installed.
"""
import json
import pathlib
import shutil
import subprocess
import sys

SKIPPED = 77


def fail(text):
    sys.exit(f"check_command_files: {text}")


def need(*programs):
    """The first of the programs that is installed."""
    for program in programs:
        if shutil.which(program):
            return program
    print(f"skipped: {' or '.join(programs)} is not installed")
    sys.exit(SKIPPED)


def output(*words):
    """What a program prints; whatever it complains about is a failure."""
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    if result.returncode or result.stderr:
        fail(f"{' '.join(words)[:200]}: status {result.returncode}: {result.stderr}")
    return result.stdout


def walk(commands, path=()):
    for command in commands:
        here = path + (command["name"],)
        yield here, command
        yield from walk(command["commands"], here)


def names(option):
    letter = ["-" + option["letter"]] if "letter" in option else []
    return letter + option["aliases"] + ["--" + option["name"]]


def expect(found, wanted, where):
    missing = [word for word in wanted if word not in found]
    if missing:
        fail(f"{where}: {' '.join(missing)} missing among: {' '.join(found)[:2000]}")


def check_man(tables, folder):
    reader = need("mandoc", "groff")
    commands = list(walk(tables["commands"]))
    pages = [folder / "man" / "turbokv.1"] + [
        folder / "man" / f"turbokv-{'-'.join(path)}.1" for path, _ in commands]
    if sorted(pages) != sorted((folder / "man").iterdir()):
        fail(f"there are other pages than {[page.name for page in pages]}")
    for page in pages:
        if reader == "mandoc":
            warnings = output("mandoc", "-Tlint", "-Wwarning", str(page))
        else:
            warnings = output("groff", "-man", "-ww", "-z", str(page))
        if warnings:
            fail(warnings)
    for page, (path, command) in zip(pages[1:], commands):
        text = page.read_text(encoding="utf-8").replace("\\-", "-")
        for option in command.get("options", []):
            for name in names(option):
                if f"\\fB{name}\\fR" not in text:
                    fail(f"{page.name}: no {name}")
    overview = pages[0].read_text(encoding="utf-8").replace("\\-", "-")
    expect(overview.replace("\\f", "\n").split("\n"),
           ["B" + page.stem for page in pages[1:]], pages[0].name)


def bash_offers(folder, *words):
    """What completing the last word offers."""
    script = ('source "$1"; shift; COMP_WORDS=(turbokv "$@"); COMP_CWORD=$#; _turbokv; '
              'printf "%s\\n" "${COMPREPLY[@]}"')
    return output("bash", "--norc", "-c", script, "bash", str(folder / "bash" / "turbokv"),
                  *words).split("\n")


def check_bash(tables, folder):
    need("bash")
    file = str(folder / "bash" / "turbokv")
    output("bash", "-n", file)
    if "_turbokv" not in output("bash", "--norc", "-c", f"source '{file}'; complete -p turbokv"):
        fail("bash does not know that _turbokv completes turbokv")
    expect(bash_offers(folder, ""), [c["name"] for c in tables["commands"]] + ["help"], "turbokv")
    for path, command in walk(tables["commands"]):
        if command["commands"]:
            expect(bash_offers(folder, *path, ""), [c["name"] for c in command["commands"]], path)
        for option in command.get("options", []):
            expect(bash_offers(folder, *path, "-"), names(option), path)
            if "argument" not in option:
                continue
            for name in names(option):
                check_bash_value(folder, path, name, option)


def check_bash_value(folder, path, name, option):
    """The words that an option takes, files, or nothing; never other options."""
    offered = bash_offers(folder, *path, name, "")
    if option["words"]:
        expect(offered, option["words"], name)
        if name.startswith("--"):
            expect(bash_offers(folder, *path, name, "=", option["words"][-1][:2]),
                   option["words"][-1:], name + "=")
    elif option["kind"] in ("file", "policy-file", "directory"):
        expect(bash_offers(folder, *path, name, str(folder)[:-1]), [str(folder)], name)
    if any(word.startswith("--") for word in offered):
        fail(f"{' '.join(path)} {name}: offers {offered}")


def check_zsh(tables, folder):
    need("zsh")
    file = str(folder / "zsh" / "_turbokv")
    output("zsh", "-f", "-n", file)
    # In place of zsh's own function one that prints the specifications that it is given.
    script = '_arguments() { print -rl -- "$@" }; _describe() { }; source "$1"; "$2"'
    for path, command in walk(tables["commands"]):
        specs = output("zsh", "-f", "-c", script, "zsh", file,
                       "_" + "_".join(("turbokv",) + path)).split("\n")
        for option in command.get("options", []):
            for name in names(option):
                found = [s for s in specs if f"){name}[" in s or f"){name}=[" in s or
                         s.startswith((f"*{name}[", f"*{name}=["))]
                if not found or not all(word in found[0] for word in option["words"]):
                    fail(f"{' '.join(path)} {name}: {found or specs}")


def check_fish(tables, folder):
    need("fish")
    file = str(folder / "fish" / "turbokv.fish")
    output("fish", "--no-config", "-n", file)

    def offers(*words):
        line = " ".join(("turbokv",) + words).replace("'", "\\'")
        script = f"source '{file}'; complete -C '{line}'"
        return [found.split("\t")[0] for found in
                output("fish", "--no-config", "-c", script).split("\n")]

    expect(offers(""), [c["name"] for c in tables["commands"]], "turbokv")
    for path, command in walk(tables["commands"]):
        if command["commands"]:
            expect(offers(*path, ""), [c["name"] for c in command["commands"]], path)
            continue
        offered = offers(*path, "-") + offers(*path, "--")
        for option in command["options"]:
            expect(offered, names(option), path)
            if option["words"]:
                expect(offers(*path, "--" + option["name"], ""), option["words"], path)


def main():
    checks = {"man": check_man, "bash": check_bash, "zsh": check_zsh, "fish": check_fish}
    if len(sys.argv) != 4 or sys.argv[1] not in checks:
        fail("expected man, bash, zsh or fish, the option tables and the folder of files")
    tables = json.loads(pathlib.Path(sys.argv[2]).read_text(encoding="utf-8"))
    if not any(command["commands"] for command in tables["commands"]):
        fail("expected a command with members among the tables")
    checks[sys.argv[1]](tables, pathlib.Path(sys.argv[3]))


if __name__ == "__main__":
    main()
