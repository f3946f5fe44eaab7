#!/usr/bin/env python3
"""Man pages and completions of the command, from its option tables.

usage: make_command_files.py TABLES TEMPLATE OUTPUT

TABLES is what 'turbokv help --dump' prints, TEMPLATE the roff source of turbokv(1), in which a line
@COMMANDS@ stands for the list of commands. Into the folder OUTPUT, which is emptied, go man/*.1 and
bash/turbokv, zsh/_turbokv and fish/turbokv.fish.
"""
import datetime
import json
import os
import pathlib
import re
import shutil
import sys
import textwrap

MADE = "Made from turbokv's option tables by tools/make_command_files.py."
ROOT_WORDS = ["help", "--help", "--version"]


def names(option):
    """All spellings of an option with their dashes, the long one last."""
    letter = ["-" + option["letter"]] if "letter" in option else []
    return letter + option["aliases"] + ["--" + option["name"]]


def walk(commands, path=()):
    """Every command below, as its words and its table."""
    for command in commands:
        here = path + (command["name"],)
        yield here, command
        yield from walk(command.get("commands", []), here)


def has_members(command):
    return bool(command.get("commands"))


def operand(command):
    """The option that an argument without a name sets, or None."""
    found = [o for o in command["options"] if o["name"] == command.get("operand")]
    return found[0] if found else None


# ---- Man pages --------------------------------------------------------------------------------


def roff(text):
    """Text as roff, in which dashes that begin a word are those of options and numbers."""
    text = " ".join(text.split()).replace("\\", "\\e")
    text = re.sub(r"(?<![\w-])-+", lambda dashes: "\\-" * len(dashes.group()), text)
    return text


def prose(text):
    """Text as lines of roff."""
    lines = textwrap.wrap(roff(text), 78, break_long_words=False, break_on_hyphens=False)
    return ["\\&" + line if line[0] in ".'" else line for line in lines]


def sentence(text):
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."


def bold(text):
    return "\\fB" + text.replace("\\", "\\e").replace("-", "\\-") + "\\fR"


def italic(text):
    return "\\fI" + text.replace("\\", "\\e").replace("-", "\\-") + "\\fR"


def heading(title, version, summary):
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.datetime.now(datetime.timezone.utc)
    date = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc) if epoch else now
    return [f'.\\" {MADE}',
            f'.TH {title.upper()} 1 "{date:%Y-%m-%d}" "turbokv {version}" "TurboKV Manual"',
            ".SH NAME", f"{title} \\- {roff(summary)}"]


def value_notes(option):
    """What is said of an option's value beside its help."""
    notes = []
    is_told = all(re.search(rf"\b{word}\b", option["help"]) for word in option["words"])
    if option["words"] and option["kind"] != "choice" and not is_told:
        notes.append("One of " + ", ".join(option["words"]) + ".")
    if option["kind"] == "size":
        notes.append("A number of bytes; K, M, G and T are powers of 1024.")
    if "default" in option:
        notes.append(f"Default: {option['default']}.")
    return notes


def man_option(option):
    value = " " + italic(option["argument"]) if "argument" in option else ""
    tag = ", ".join(bold(name) for name in names(option)) + value
    text = " ".join([sentence(option["help"])] + value_notes(option))
    return [".TP", tag] + prose(text)


def man_page(path, command, version):
    title = "-".join(("turbokv",) + path)
    lines = heading(title, version, command["summary"])
    words = "turbokv " + " ".join(path)
    lines += [".SH SYNOPSIS"]
    if has_members(command):
        lines += [f"{bold(words)} {italic('COMMAND')} [{italic('options')}]", ".SH DESCRIPTION"]
        lines += prose(sentence(command["summary"]))
        return lines + man_members(path, command) + man_end(path)
    argument = operand(command)
    extra = f" [{italic(argument['argument'])}]" if argument else ""
    lines += [f"{bold(words)} [{italic('options')}]{extra}", ".SH DESCRIPTION"]
    lines += prose(command["description"])
    if argument:
        lines += [".PP", f"An argument without a name is the value of {bold('--' + argument['name'])}."]
    lines += [".SH OPTIONS"]
    for option in command["options"]:
        lines += man_option(option)
    return lines + man_end(path)


def man_members(path, command):
    lines = [".SH COMMANDS"] if path else []
    for member in command["commands"]:
        page = "-".join(("turbokv",) + path + (member["name"],))
        lines += [".TP", f"{bold(member['name'])}, see {bold(page)}(1)"]
        lines += prose(sentence(member["summary"]))
    return lines


def man_end(path):
    parents = ["turbokv"] + (["turbokv-" + path[0]] if len(path) > 1 else [])
    return [".SH SEE ALSO", ", ".join(f"{bold(page)}(1)" for page in parents)]


def main_page(template, tables):
    lines = heading("turbokv", tables["version"], "compressed KV caches for language models")
    for line in template.splitlines():
        lines += man_members((), tables) if line == "@COMMANDS@" else [line]
    pages = ["-".join(("turbokv",) + path) for path, _ in walk(tables["commands"])]
    return lines + [".SH SEE ALSO"] + [f"{bold(page)}(1)," for page in pages[:-1]] + [
        f"{bold(pages[-1])}(1)"]


# ---- bash -------------------------------------------------------------------------------------

BASH_HEAD = f"""# {MADE}
_turbokv()
{{
    local IFS=$' \\t\\n'
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}}
    local path=turbokv words="" action=-W at
    if [[ $cur == = ]]; then # "--name=" is two words, "--name=value" three
        cur=""
    elif [[ $prev == = ]]; then
        prev=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    for ((at = 1; at < COMP_CWORD; at++)); do
        case $path/${{COMP_WORDS[at]}} in
            @PATHS@) path=$path/${{COMP_WORDS[at]}} ;;
            *) break ;;
        esac
    done
    case $path in
"""

BASH_TAIL = """    esac
    IFS=$'\\n'
    case $action in
        -W)
            IFS=$' \\t\\n'
            COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
        -f | -d)
            compopt -o filenames 2>/dev/null
            COMPREPLY=($(compgen "$action" -- "$cur")) ;;
        *) COMPREPLY=() ;;
    esac
}
complete -F _turbokv turbokv
"""


def bash_value(option):
    if option["words"]:
        return f'words="{" ".join(option["words"])}"'
    return {"file": "action=-f", "policy-file": "action=-f", "directory": "action=-d"}.get(
        option["kind"], "action=none")


def bash_command(path, command):
    spell = "/".join(("turbokv",) + path)
    if has_members(command):
        members = " ".join(member["name"] for member in command["commands"])
        return [f"        {spell}) words=\"{members} --help\" ;;"]
    lines = [f"        {spell})", "            case $prev in"]
    for option in command["options"]:
        if "argument" in option:
            lines.append(f"                {' | '.join(names(option))}) {bash_value(option)} ;;")
    everything = " ".join(name for option in command["options"] for name in names(option))
    lines.append("                *)")
    argument = operand(command)
    if argument:
        lines += [f"                    words=\"{everything}\"",
                  f"                    [[ $cur == -* ]] || {bash_value(argument)} ;;"]
    else:
        lines.append(f"                    words=\"{everything}\" ;;")
    return lines + ["            esac ;;"]


def bash(tables):
    commands = list(walk(tables["commands"]))
    paths = " | ".join("/".join(("turbokv",) + path) for path, _ in commands)
    first = " ".join([c["name"] for c in tables["commands"]] + ROOT_WORDS)
    body = [f"        turbokv) words=\"{first}\" ;;"]
    for path, command in commands:
        body += bash_command(path, command)
    return BASH_HEAD.replace("@PATHS@", paths) + "\n".join(body) + "\n" + BASH_TAIL


# ---- zsh --------------------------------------------------------------------------------------


def quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


def zsh_action(option):
    if option["words"]:
        return "(" + " ".join(option["words"]) + ")"
    return {"file": "_files", "policy-file": "_files", "directory": "_directories"}.get(
        option["kind"], " ")


def zsh_value(option):
    if "argument" not in option:
        return ""
    return ":" + option["argument"].replace(":", "\\:") + ":" + zsh_action(option)


def zsh_option(option):
    """One specification a spelling. Of what may be repeated none excludes another."""
    repeats = option["kind"] == "policy-list"
    group = "*" if repeats else "(" + ("- *" if option["kind"] == "help" else
                                       " ".join(names(option))) + ")"
    text = " ".join(option["help"].split()).replace("[", "\\[").replace("]", "\\]")
    for name in names(option):
        equals = "=" if "argument" in option and name.startswith("--") else ""
        yield quoted(f"{group}{name}{equals}[{text}]{zsh_value(option)}")


def zsh_function(path):
    return "_" + "_".join(("turbokv",) + path)


def zsh_members(path, members, extra):
    lines = [f"{zsh_function(path)}() {{", '    local curcontext="$curcontext" state line',
             "    typeset -A opt_args", "    local -a commands", "    commands=("]
    for member in members:
        lines.append("        " + quoted(f"{member['name']}:{member['summary']}"))
    lines += ["    )", "    _arguments -C \\"]
    lines += [f"        {quoted(spec)} \\" for spec in extra]
    lines += ["        '1:command:->command' '*::argument:->argument'",
              "    case $state in",
              "        command) _describe command commands ;;",
              "        argument)", "            case $words[1] in"]
    for member in members:
        lines.append(f"                {member['name']}) "
                     f"{zsh_function(path + (member['name'],))} ;;")
    return lines + ["            esac ;;", "    esac", "}", ""]


def zsh(tables):
    lines = ["#compdef turbokv", f"# {MADE}", ""]
    for path, command in walk(tables["commands"]):
        if has_members(command):
            lines += zsh_members(path, command["commands"], ["(- *)--help[list the commands]"])
            continue
        specs = [spec for option in command["options"] for spec in zsh_option(option)]
        argument = operand(command)
        if argument:
            specs.append(quoted("1" + zsh_value(argument)))
        lines += [f"{zsh_function(path)}() {{", "    _arguments \\"]
        lines += [f"        {spec} \\" for spec in specs[:-1]] + [f"        {specs[-1]}", "}", ""]
    lines += zsh_members((), tables["commands"] + [
        {"name": "help", "summary": "list the commands, or the options of one"}],
        ["(- *)--help[list the commands]", "(- *)--version[print the version]"])
    lines = [line for line in lines if not line.strip().startswith("help) _turbokv_help")]
    return "\n".join(lines + ['_turbokv "$@"', ""])


# ---- fish -------------------------------------------------------------------------------------

FISH_HEAD = f"""# {MADE}
function __turbokv_is --description 'whether the commands so far are these'
    set -l words (commandline -opc)
    set -e words[1]
    set -l path ''
    for word in $words
        switch $path/$word
            case @PATHS@
                set path $path/$word
            case '*'
                break
        end
    end
    test "$path" = "$argv[1]"
end

complete -c turbokv -f
"""


def fish_value(option):
    if "argument" not in option:
        return ""
    if option["words"]:
        return " -x -a " + quoted(" ".join(option["words"]))
    return {"file": " -r -F", "policy-file": " -r -F",
            "directory": " -x -a '(__fish_complete_directories)'"}.get(option["kind"], " -x")


def fish_names(option):
    for name in names(option):
        if name.startswith("--"):
            yield f"-l {name[2:]}"
        else:
            yield f"-s {name[1:]}" if len(name) == 2 else f"-o {name[1:]}"


def fish_line(path, arguments):
    condition = quoted("__turbokv_is " + "".join("/" + word for word in path) if path else
                       "__turbokv_is ''")
    return f"complete -c turbokv -n {condition} {arguments}"


def fish_quoted(text):
    return "'" + " ".join(text.split()).replace("\\", "\\\\").replace("'", "\\'") + "'"


def fish(tables):
    commands = list(walk(tables["commands"]))
    lines = []
    for path, command in [((), tables)] + commands:
        for member in command.get("commands", []):
            lines.append(fish_line(path, f"-a {member['name']} "
                                         f"-d {fish_quoted(member['summary'])}"))
        for option in command.get("options", []):
            lines.append(fish_line(path, f"{' '.join(fish_names(option))}{fish_value(option)} "
                                         f"-d {fish_quoted(option['help'])}"))
        argument = operand(command) if command.get("options") else None
        if argument and argument["kind"] == "file":
            lines.append(fish_line(path, "-F"))
    lines += [fish_line((), "-a help -d 'list the commands, or the options of one'"),
              fish_line((), "-l help -d 'list the commands'"),
              fish_line((), "-l version -d 'print the version'")]
    paths = " ".join("/" + "/".join(path) for path, _ in commands)
    return FISH_HEAD.replace("@PATHS@", paths) + "\n".join(lines) + "\n"


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__.strip().splitlines()[2])
    tables = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    template = pathlib.Path(sys.argv[2]).read_text(encoding="utf-8")
    output = pathlib.Path(sys.argv[3])
    shutil.rmtree(output, ignore_errors=True)
    files = {"man/turbokv.1": "\n".join(main_page(template, tables)) + "\n",
             "bash/turbokv": bash(tables), "zsh/_turbokv": zsh(tables),
             "fish/turbokv.fish": fish(tables)}
    for path, command in walk(tables["commands"]):
        page = man_page(path, command, tables["version"])
        files[f"man/turbokv-{'-'.join(path)}.1"] = "\n".join(page) + "\n"
    for name, text in files.items():
        file = output / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
