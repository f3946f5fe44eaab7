#!/usr/bin/env bash
# SentencePiece marks spaces by U+2581 (LOWER ONE EIGHTH BLOCK) inside its pieces, and does not tell a
# U+2581 that the text itself holds from a space: both give the same ids, and decoding gives a space.
# So decode(encode(text)) is not text, without a word. Tokenizers that shall give the same ids (ours
# too, for Gemma's GGUF files) must do the same.
# Seen with sentencepiece 0.2.1 from PyPI, a unigram model trained here on a few lines:
#     same ids: True
#     decoded: 'a b', the text was 'a▁b'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q sentencepiece==0.2.1
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sentencepiece

lines = ["a b c d e f g h", "b a d c f e h g", "c c a a b b d d"] * 20
with open("lines.txt", "w", encoding="utf-8") as file:
    file.write("\n".join(lines) + "\n")
sentencepiece.SentencePieceTrainer.train(
    input="lines.txt", model_prefix="small", vocab_size=15, minloglevel=2)
model = sentencepiece.SentencePieceProcessor(model_file="small.model")
text = "a\u2581b"
same = model.encode(text) == model.encode("a b")
decoded = model.decode(model.encode(text))
print("same ids:", same)
print(f"decoded: {decoded!r}, the text was {text!r}")
assert same and decoded == "a b", "SentencePiece tells the two apart now"
PYTHON
