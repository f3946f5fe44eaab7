#!/usr/bin/env python3
"""Writes the golden logits that tests/model/test_logits_golden.c checks our forward pass against.

The numbers come from llama.cpp on the CPU with an f16 KV cache, an implementation that shares no
code with this project. To repeat (the test needs only the committed text files, not this):

    python3 -m venv venv && venv/bin/pip install llama-cpp-python==0.3.36 numpy
    venv/bin/python tools/make_logits_golden.py models/tiny-q8_0.gguf \\
        tests/model/data/logits_golden_tiny-q8_0.txt

llama.cpp rounds the activations to 8 bits before it multiplies with q8_0 weights, which moves the
logits of these small models by up to 0.25. The rows of logits therefore come from the same weights
expanded to F32, where its arithmetic is float. The greedy continuation must be the same from both,
or this program ends with an error; free text of a small model has near ties, so the prompts of
PROMPTS_OF_MODEL were chosen from about 40 by the least margin between the two largest logits on
the way, which the file records.

Each prompt is stored as token ids, so that a mistake in a tokenizer cannot hide here. A row holds
the 32 largest logits of one position and 64 more at fixed, evenly spaced ids.
"""
import ctypes
import os
import sys
import tempfile

import llama_cpp
import numpy as np

AUSTEN = """It is a truth universally acknowledged, that a single man in possession of a good \
fortune, must be in want of a wife. However little known the feelings or views of such a man may \
be on his first entering a neighbourhood, this truth is so well fixed in the minds of the \
surrounding families, that he is considered the rightful property of some one or other of their \
daughters.

"My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park is let \
at last?"

Mr. Bennet replied that he had not.

"But it is," returned she; "for Mrs. Long has just been here, and she told me all about it."

Mr. Bennet made no answer.

"Do you not want to know who has taken it?" cried his wife impatiently.

"You want to tell me, and I have no objection to hearing it."
"""

MELVILLE = """Call me Ishmael. Some years ago, never mind how long precisely, having little or no \
money in my purse, and nothing particular to interest me on shore, I thought I would sail about a \
little and see the watery part of the world. It is a way I have of driving off the spleen and \
regulating the circulation. Whenever I find myself growing grim about the mouth; whenever it is a \
damp, drizzly November in my soul; whenever I find myself involuntarily pausing before coffin \
warehouses, and bringing up the rear of every funeral I meet; then, I account it high time to get \
to sea as soon as I can."""

CASTLE = "\nThe secret number of the red castle is 48213.\n"
MILL = "\nThe secret number of the golden mill is 90417.\n"
QUESTION = "\nQuestion: What is the secret number of the golden mill?\nAnswer: "
REPEAT = "\nRepeat the passage above.\n"

PROMPTS = {
    "moon": "the moon was bright and bright, and the moon was bright and bright, and the moon",
    "glance": "She looked at him with",
    "fact": CASTLE + MELVILLE,
    "needle": CASTLE + MELVILLE + MILL + AUSTEN + QUESTION,
    "copy-two": AUSTEN + MELVILLE + REPEAT + AUSTEN[:60],
    "copy-one": MELVILLE + AUSTEN + REPEAT + MELVILLE[:40],
}
PROMPTS_OF_MODEL = {
    "tiny": ["moon", "fact", "needle"],
    "small": ["glance", "copy-two", "copy-one"],
}
N_GREEDY = 64
N_TOP = 32
N_SAMPLE = 64
N_ROWS = 4


def open_model(path):
    return llama_cpp.Llama(path, n_ctx=2048, n_batch=512, n_threads=2, n_threads_batch=2,
                           logits_all=True, type_k=llama_cpp.GGML_TYPE_F16,
                           type_v=llama_cpp.GGML_TYPE_F16, verbose=False)


def expand(path, out_path):
    """Writes the model with every weight as F32."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(path.encode(), out_path.encode(), ctypes.byref(params)):
        sys.exit(f"{path} could not be expanded to F32")


def evaluate(model, tokens):
    """Logits [len(tokens)][vocabulary] of a sequence that starts at position 0."""
    model.reset()
    model.eval(tokens)
    return model.scores[: len(tokens)].copy()


def greedy(model, tokens):
    """Token by token, as generation does it. Returns the ids and the least top-two margin."""
    logits = evaluate(model, tokens)[-1]
    ids, margins = [], []
    for _ in range(N_GREEDY):
        second, first = np.sort(logits)[-2:]
        margins.append(first - second)
        ids.append(int(np.argmax(logits)))
        model.eval([ids[-1]])
        logits = model.scores[model.n_tokens - 1].copy()
    return ids, min(margins)


def write_row(out, position, logits):
    top = np.argsort(-logits, kind="stable")[:N_TOP]
    step = len(logits) // N_SAMPLE
    sample = np.arange(N_SAMPLE) * step + step // 2
    out.write(f"row {position} {len(top) + len(sample)}\n")
    for ids in (top, sample):
        out.write(" ".join(f"{i}:{logits[i]:.5f}" for i in ids) + "\n")


def write_prompt(out, name, stored, expanded):
    """stored, expanded: the model as it is in the file, and with F32 weights."""
    tokens = stored.tokenize(PROMPTS[name].encode(), add_bos=False, special=False)
    logits = evaluate(expanded, tokens)
    ids, margin = greedy(expanded, tokens)
    stored_ids, stored_margin = greedy(stored, tokens)
    text = repr(stored.detokenize(ids).decode(errors="replace"))
    print(f"{name}: {len(tokens)} tokens, margins {margin:.4f} {stored_margin:.4f}: {text}")
    if ids != stored_ids:
        sys.exit(f"{name}: the continuation depends on how activations are rounded")
    out.write(f"prompt {name} {len(tokens)}\n" + " ".join(map(str, tokens)) + "\n")
    out.write(f"greedy {len(ids)} {margin:.4f} {stored_margin:.4f}\n")
    out.write(" ".join(map(str, ids)) + "\n")
    positions = [len(tokens) * (i + 1) // N_ROWS - 1 for i in range(N_ROWS)]
    out.write(f"rows {len(positions)}\n")
    for position in positions:
        write_row(out, position, logits[position])


def main():
    path, out_path = sys.argv[1:3]
    stored = open_model(path)
    with tempfile.TemporaryDirectory() as folder:
        expand(path, os.path.join(folder, "expanded.gguf"))
        expanded = open_model(os.path.join(folder, "expanded.gguf"))
    names = PROMPTS_OF_MODEL[os.path.basename(path).split("-")[0]]
    with open(out_path, "w", encoding="ascii") as out:
        out.write(f"# Logits of {os.path.basename(path)} by llama.cpp (llama-cpp-python "
                  f"{llama_cpp.__version__}), f16 KV cache.\n"
                  "# Made by tools/make_logits_golden.py, which explains the content. Margins: with "
                  "F32 weights, with the file's.\n")
        out.write(f"vocabulary {stored.n_vocab()}\nprompts {len(names)}\n")
        for name in names:
            write_prompt(out, name, stored, expanded)


if __name__ == "__main__":
    main()
