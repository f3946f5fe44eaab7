#!/usr/bin/env python3
"""Writes tests/model/data/dequantise_golden.bin: random blocks of every weight type that TurboKV reads
and their values by the package `gguf` (an independent implementation).

usage: make_dequantise_golden.py OUT   (needs: pip install gguf numpy; made with gguf 0.19.0)

Layout, little-endian: for each type u32 type, u32 bytes, u32 values, the bytes, the values as float32.
"""
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize

rng = np.random.default_rng(20261123)
out = b""
BLOCKS = 2
# type: block bytes, block length, offsets of the fp16 fields (kept to finite numbers)
TYPES = {T.F32: (4, 1, ()), T.F16: (2, 1, ()), T.BF16: (2, 1, ()), T.Q8_0: (34, 32, (0,)),
         T.Q4_0: (18, 32, (0,)), T.Q4_1: (20, 32, (0, 2)), T.Q5_0: (22, 32, (0,)),
         T.Q5_1: (24, 32, (0, 2)), T.Q4_K: (144, 256, (0, 2)), T.Q5_K: (176, 256, (0, 2)),
         T.Q6_K: (210, 256, (208,))}
for kind, (block_bytes, length, halves) in TYPES.items():
    n = 64 if length == 1 else BLOCKS
    if length == 1:
        x = rng.standard_normal(n).astype(np.float32)
        raw = {T.F32: x.tobytes(), T.F16: x.astype(np.float16).tobytes(),
               T.BF16: (x.view(np.uint32) >> 16).astype(np.uint16).tobytes()}[kind]
    else:
        blocks = rng.integers(0, 256, (n, block_bytes), dtype=np.uint8)
        for at in halves:
            blocks[:, at:at + 2] = rng.standard_normal(n).astype(np.float16).view(np.uint8).reshape(n, 2)
        raw = blocks.tobytes()
    values = dequantize(np.frombuffer(raw, np.uint8).reshape(1, -1) if kind not in (T.F32, T.F16)
                        else np.frombuffer(raw, np.float32 if kind == T.F32 else np.float16), kind)
    values = np.ascontiguousarray(values, np.float32).reshape(-1)
    assert len(values) == n * length
    out += struct.pack("<III", int(kind), len(raw), len(values)) + raw + values.tobytes()
open(sys.argv[1], "wb").write(out)
