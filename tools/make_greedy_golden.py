#!/usr/bin/env python3
"""Writes what tests/model/test_greedy_golden.c checks on models that others made: tokens of texts
and greedy continuations, by llama.cpp on the CPU with an f16 KV cache.

To repeat (the test needs only the committed files):

    python3 -m venv venv && venv/bin/pip install llama-cpp-python==0.3.36 numpy
    venv/bin/python tools/make_greedy_golden.py "$(scripts/fetch-models smollm2)" \\
        tests/model/data/greedy_golden_smollm2.json
    venv/bin/python tools/make_greedy_golden.py "$(scripts/fetch-models gemma3)" \\
        tests/model/data/greedy_golden_gemma3.json

The weights are expanded to F32 first: with quantised ones llama.cpp rounds activations to 8 bits,
which our host never does, and the texts part sooner or later. Each continuation has its margin: the
least lead of a chosen token over the next best, in logits.
"""
import json
import os
import sys
import tempfile

import llama_cpp
import numpy as np

from make_logits_golden import AUSTEN, CASTLE, MELVILLE, MILL, QUESTION, REPEAT, expand

N_GREEDY = 64
CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
GEMMA = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"

# Gemma's last prompt is longer than its window of 512 tokens.
PROMPTS = {
    "smollm2": {
        "capital": "The capital of France is",
        "code": "def fibonacci(n):\n",
        "story": "Once upon a time, in a small village by the sea,",
        "chat": CHATML.format("Why is the sky blue?"),
        "needle": CASTLE + MELVILLE + MILL + AUSTEN + CASTLE + MELVILLE[:400] + QUESTION,
    },
    "gemma3": {
        "capital": "The capital of France is",
        "code": "def fibonacci(n):\n",
        "story": "Once upon a time, in a small village by the sea,",
        "chat": GEMMA.format("Why is the sky blue?"),
        "copy": AUSTEN + MELVILLE + CASTLE + AUSTEN + MELVILLE + REPEAT + AUSTEN[:60],
    },
}

# Texts that tokenizers get wrong; "special": names of special tokens stand for these tokens.
TEXTS = [
    ("Hello  world,\n\n\nit's 2026 -- 3.14159!\t\tx   ", False),
    ("int main(void)\n{\n\tfor (int i = 0; i < 10; i++) {\n        printf(\"%d\\n\", i);\n\t}\n}\n", False),
    ("<table><tr><td>x</td></tr></table> <h1>naïve café</h1> 日本語 한국어 Привет العربية 🙂👩‍👩‍👧", False),
    ("\u200b\u00a0\u2581 \u2581\u2581 a\u2581b e\u0301 \U0001d518\x7f\x01 <0x41> <s> <unused1> [multimodal]", False),
    ("\n" * 75 + " " * 77 + "\t" * 40 + "x\n \n \n" + " \n" * 5, False),
    ("<bos><start_of_turn>user\nWhat is 2+2?<end_of_turn>\n<start_of_turn>model\n<unk><pad>x", True),
    ("<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n<|endoftext|>x", True),
    ("<|im_start|> and <start_of_turn> as text", False),
]


def open_model(path):
    """One thread: on a busy machine, llama.cpp's threads wait for each other."""
    return llama_cpp.Llama(path, n_ctx=2048, n_batch=512, n_threads=1, n_threads_batch=1,
                           type_k=llama_cpp.GGML_TYPE_F16, type_v=llama_cpp.GGML_TYPE_F16,
                           verbose=False)


def last_logits(model):
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), (model.n_vocab(),))


def greedy(model, tokens):
    """Token by token, as generation does it. Returns the ids and the least lead."""
    model.reset()
    model.eval(tokens)
    ids, margins = [], []
    for _ in range(N_GREEDY):
        logits = last_logits(model)
        second, first = np.partition(logits, -2)[-2:]
        margins.append(float(first - second))
        ids.append(int(np.argmax(logits)))
        model.eval([ids[-1]])
    return ids, min(margins)


def make_prompt(model, name, text):
    tokens = model.tokenize(text.encode(), add_bos=True, special=True)
    ids, margin = greedy(model, tokens)
    written = model.detokenize(ids, special=True).decode(errors="replace")
    print(f"{name}: {len(tokens)} tokens, margin {margin:.4f}: {written!r}", flush=True)
    return {"name": name, "text": text, "tokens": tokens, "greedy": ids, "margin": round(margin, 4),
            "written": written}


def main():
    path, out_path = sys.argv[1:3]
    name = os.path.splitext(os.path.basename(out_path))[0].rsplit("_", 1)[-1]
    with tempfile.TemporaryDirectory() as folder:
        expanded = os.path.join(folder, "expanded.gguf")
        expand(path, expanded)
        model = open_model(expanded)
        texts = [{"text": text, "special": special,
                  "ids": model.tokenize(text.encode(), add_bos=False, special=special)}
                 for text, special in TEXTS]
        prompts = [make_prompt(model, key, text) for key, text in PROMPTS[name].items()]
    golden = {"made_by": f"tools/make_greedy_golden.py, llama-cpp-python {llama_cpp.__version__}",
              "model": os.path.basename(path), "texts": texts, "prompts": prompts}
    with open(out_path, "w", encoding="ascii") as out:
        json.dump(golden, out, indent=None, separators=(",", ":"))
        out.write("\n")


if __name__ == "__main__":
    main()
