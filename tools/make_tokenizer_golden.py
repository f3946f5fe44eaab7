#!/usr/bin/env python3
"""Writes tests/model/data/tokenizer_golden.json: small vocabularies and what independent
implementations (Hugging Face tokenizers, SentencePiece) make of some texts with them.

usage: make_tokenizer_golden.py OUT   (needs: pip install tokenizers sentencepiece;
made with tokenizers 0.23.3 and sentencepiece 0.2.3)
"""
import io
import json
import random
import sys

import sentencepiece as spm
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = """the road to the mill ran along the bank and in spring the water came up to the stones of
bridge miller knew every tree on the way when he was asked how old they were he would answer that his
grandfather had found them there It's don't I'll we've they'd The Old HOUSE iPhone über Straße naïve
café 123 4567 89 0 2026 3.14 foo_bar() x=y+1; == != -> ... !? 日本語 中文 русский слово ελληνικά""".split()
random.seed(7)
CORPUS = [" ".join(random.choices(WORDS, k=12)) for _ in range(400)]
CASES = ["", " ", "Hello, world!", "the road to the mill", "It's DON'T we'Ve 'tis ''s", "  two  spaces ",
         "\ttab\t\ttabs", "line\nline\n\n\nend\n", "\r\n\r\n x \r y", "12345 1 22 333 4444 3.14159",
         "a1b22c333", "foo_bar(baz)[0] += x->y;", "!!! ... ?!?", "naïve café Straße ÜBER", "日本語 中文テスト",
         "русский текст", "👍🏽 👨‍👩‍👧 emoji", "e\u0301 combining", "\u00a0nbsp\u2003em\u3000ideographic",
         "½ ² Ⅷ ٣", "x" * 70, " " * 33 + "x", "\n" * 20, "http://a.b/c?d=e&f#g", "MixedCASEWordsHere iPhone",
         "I'LL they'D he'S", "tail spaces   ", "\u200bzero\u200dwidth", "a\u0000b"[:1], "/path/to/\n/x"]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
      r"\s*[\r\n]+|\s+(?!\S)|\s+")
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (r"[^\r\n\p{L}\p{N}]?" + UP + "*" + LOW + r"+|[^\r\n\p{L}\p{N}]?" + UP + "+" + LOW +
          r"*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
split = lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated")
bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PRE = {"gpt-2": [split(GPT2)], "llama-bpe": [split(CL % r"\p{N}{1,3}")], "qwen2": [split(CL % r"\p{N}")],
       "smollm": [pre_tokenizers.Digits(individual_digits=True), split(GPT2)], "tekken": [split(TEKKEN)],
       "default": [split(p) for p in (r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")]}


def byte_level(name):
    tokenizer = Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE[name] + [bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    vocab = sorted(model["vocab"], key=model["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {"tokens": vocab, "merges": merges,
            "cases": [{"text": t, "ids": tokenizer.encode(t).ids} for t in CASES]}


def sentencepiece():
    blob = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=blob, vocab_size=460, model_type="bpe",
        byte_fallback=True, character_coverage=0.99, remove_extra_whitespaces=False, split_digits=True,
        normalization_rule_name="identity", hard_vocab_limit=False, minloglevel=2)
    model = spm.SentencePieceProcessor(model_proto=blob.getvalue())
    n = model.vocab_size()
    kinds = [2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
             for i in range(n)]
    return {"tokens": [model.id_to_piece(i) for i in range(n)],
            "scores": [model.get_score(i) for i in range(n)], "kinds": kinds,
            "cases": [{"text": t, "ids": model.encode(t)} for t in CASES]}


golden = {name: byte_level(name) for name in PRE}
golden["llama"] = sentencepiece()
json.dump(golden, open(sys.argv[1], "w"), ensure_ascii=True, separators=(",", ":"))
