#!/usr/bin/env python3
"""A decoder written from docs/FORMAT.md alone; checks it against the test vectors.

usage: decode_vectors.py VECTORS [FORMAT.md]
"""
import re
import struct
import sys

try:
    import numpy as np
except ImportError:
    print("skipped: numpy is not installed")
    sys.exit(77)

F = np.float32
TYPES = {  # planes, side fields
    "turbo8": ([8], 1), "turbo4": ([4], 1), "turbo3": ([2, 1], 1), "turbo2": ([2], 1),
    "trellis3": ([2, 1], 1), "trellis2": ([1, 1], 1),
    "turbo4q": ([2, 1, 1], 2), "turbo3q": ([2, 1], 2),
}
UPPER = {4: [6, 18, 31, 44, 58, 75, 96, 127], 3: [14, 45, 79, 127], 2: [38, 127]}
CODEBOOK_BITS = {"turbo4": 4, "turbo3": 3, "turbo2": 2, "turbo4q": 3, "turbo3q": 2}
TRELLIS = {
    "trellis3": (2, [-127, -92, -69, -52, -38, -27, -16, -5, 5, 16, 27, 38, 52, 69, 92, 127]),
    "trellis2": (1, [-127, -72, -39, -13, 13, 39, 72, 127]),
}


def splitmix_words(seed):
    words, state, mask = [], seed, (1 << 64) - 1
    while len(words) < 32:
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        words += [z & 0xFFFFFFFF, z >> 32]
    return words


SIGNS = [splitmix_words(seed) for seed in (1, 82689, 3)]


def flip(x, first, end, words):
    for j in range(first, end):
        if words[j // 32] >> (j % 32) & 1:
            x[j] = -x[j]


def transform(x):
    n, half = len(x), 1
    while half < n:
        for base in range(0, n, 2 * half):
            a, b = x[base:base + half].copy(), x[base + half:base + 2 * half].copy()
            x[base:base + half], x[base + half:base + 2 * half] = a + b, a - b
        half *= 2
    x *= F(1 / np.sqrt(np.float64(n)))


def padded(d):
    """Coordinates that a row of head_dim d is stored with."""
    return (d + 15) // 16 * 16


def undo_round(x, words):
    d = len(x)
    p = 1 << (d.bit_length() - 1)
    if p < d:
        transform(x[d - p:])
        flip(x, d - p, d, words)
    transform(x[:p])
    flip(x, 0, p, words)


def place(w, c):
    """Word and shift of code c in a group of 32."""
    return (c // 4, 8 * (c % 4)) if w == 8 else (c % 4 * w // 4, 4 * (c // 4) + c % 4 * w % 4)


def half(field):
    return F(np.array([field], np.uint16).view(np.float16)[0])


def levels_of(name, codes, field):
    if name == "turbo8":
        return [c - 256 if c > 127 else c for c in codes]
    if name in TRELLIS:
        free_bits, table = TRELLIS[name]
        w, out = (field & 31) | (field >> 15) << 5, []
        for code in codes:
            w = (w << 1 | code >> free_bits) & 0x1FF
            z1, z0 = bin(w & 0x149).count("1") & 1, bin(w & 0x086).count("1") & 1
            out.append(table[4 * (code & (1 << free_bits) - 1) + 2 * z1 + z0])
        return out
    bits = CODEBOOK_BITS[name]
    table = [-v for v in reversed(UPPER[bits])] + UPPER[bits]
    return [table[c & (1 << bits) - 1] for c in codes]


def decode(name, codes, fields):
    d = len(codes)
    scale = half(fields[0] & 0x7FFF if name in TRELLIS else fields[0]) / F(64)
    y = np.array(levels_of(name, codes, fields[0]), F) * scale
    if len(fields) == 2:
        g = half(fields[1])
        t = np.array([-g if c >> CODEBOOK_BITS[name] & 1 else g for c in codes], F)
        undo_round(t, SIGNS[2])
        y = y + t
    undo_round(y, SIGNS[1])
    undo_round(y, SIGNS[0])
    return y


def read_record(name, d, data):
    planes, n_fields = TYPES[name]
    codes, low, at = [0] * d, 0, 0
    for w in planes:
        for j in range(d):
            word, shift = place(w, j % 32)
            is_tail = j // 32 == d // 32
            bit = j // 32 * w * 32 + word * (16 if is_tail and w < 8 else 32) + shift
            value = int.from_bytes(data[at + bit // 8:at + bit // 8 + 1], "little")
            codes[j] |= (value >> bit % 8 & (1 << w) - 1) << low
        at, low = at + d * w // 8, low + w
    return codes, [int.from_bytes(data[at + 2 * f:at + 2 * f + 2], "little")
                   for f in range(n_fields)]


def page_address(order, w, d, slot, j):
    if order == "value_page":
        word, shift = place(w, slot % 32)
        return (slot // 32 * w + word) * d + j, shift
    word, shift = place(w, j % 32)
    group = j // 32
    if group < d // 32 or w == 8:
        return (group * w + word) * 64 + slot, shift
    base = group * w * 64
    if w == 1:
        return base + slot % 32, shift + 16 * (slot // 32)
    return base + word // 2 * 64 + slot, shift + 16 * (word % 2)


def read_page(name, order, d, words, slot):
    planes, n_fields = TYPES[name]
    codes, low, base = [0] * d, 0, 0
    for w in planes:
        for j in range(d):
            at, shift = page_address(order, w, d, slot, j)
            codes[j] |= (words.get(base + at, 0) >> shift & (1 << w) - 1) << low
        base, low = base + d * w * 2, low + w
    return codes, [words.get(base + 32 * f + slot // 2, 0) >> 16 * (slot % 2) & 0xFFFF
                   for f in range(n_fields)]


def write_page(name, order, d, rows):
    """The page that holds {slot: (codes, fields)} and zeros."""
    planes, n_fields = TYPES[name]
    words = [0] * (sum(planes) * d * 2 + 32 * n_fields)
    for slot, (codes, fields) in rows.items():
        low, base = 0, 0
        for w in planes:
            for j, code in enumerate(codes):
                at, shift = page_address(order, w, d, slot, j)
                words[base + at] |= (code >> low & (1 << w) - 1) << shift
            base, low = base + d * w * 2, low + w
        for f, field in enumerate(fields):
            words[base + 32 * f + slot // 2] |= field << 16 * (slot % 2)
    return struct.pack(f"<{len(words)}I", *words)


def fnv1a(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return f"{h:016x}"


def read_vectors(path):
    """Cases {"name", "head_dim", "rows": {row: {"slot", "record", ...}}, other lines}, a list."""
    cases = []
    for line in open(path):
        key, _, rest = line.strip().partition(" ")
        if key == "turbokv":
            assert rest == "format 1", rest
        elif key == "type":
            cases.append({"name": rest.split()[0], "head_dim": int(rest.split()[2]), "rows": {}})
            case = cases[-1]
        elif key == "row":
            row = case["rows"][int(rest.split()[0])] = {"slot": int(rest.split()[2])}
        elif key in ("record", "decoded", "decoded_hash"):
            row[key] = rest
        else:
            case[key] = rest
    return cases


def decode_record(name, head_dim, record):
    if name == "f16":
        return np.frombuffer(record, "<f2").astype(F)[:head_dim]
    return decode(name, *read_record(name, padded(head_dim), record))[:head_dim]


def decode_slot(name, order, head_dim, words, slot):
    d = padded(head_dim)
    if name == "f16":
        data = b"".join(words.get(slot * d // 2 + i, 0).to_bytes(4, "little")
                        for i in range(d // 2))
        return np.frombuffer(data, "<f2").astype(F)[:head_dim]
    return decode(name, *read_page(name, order, d, words, slot))[:head_dim]


def check_row(what, row, values):
    if row.get("decoded") == "nan":
        assert np.isnan(values).all(), what
    elif "decoded" in row:
        assert [f"{v:08x}" for v in values.view(np.uint32)] == row["decoded"].split(), what
    else:
        assert fnv1a(values.tobytes()) == row["decoded_hash"], what


def check_page(case, order):
    """Decodes the rows of a page; or, of a page with only a hash, builds it from its records."""
    name, head_dim, rows = case["name"], case["head_dim"], case["rows"].values()
    if order in case:
        words = {int(i): int(v, 16) for i, v in (w.split(":") for w in case[order].split())}
        for row in rows:
            check_row(f"{name} head_dim {head_dim} {order} slot {row['slot']}", row,
                      decode_slot(name, order, head_dim, words, row["slot"]))
        return
    d = padded(head_dim)
    if name == "f16":
        page = bytearray(128 * d)
        for row in rows:
            page[2 * d * row["slot"]:2 * d * (row["slot"] + 1)] = bytes.fromhex(row["record"])
    else:
        page = write_page(name, order, d, {
            row["slot"]: read_record(name, d, bytes.fromhex(row["record"])) for row in rows})
    assert fnv1a(page) == case[order + "_hash"], f"{name} head_dim {head_dim} {order}"


def check_signs(path):
    """The words printed in the document are those of the rule."""
    printed = re.findall(r"^    ((?:[0-9a-f]{8} ?){8})$", open(path).read(), re.M)
    words = [int(w, 16) for line in printed for w in line.split()]
    assert words == SIGNS[0] + SIGNS[1] + SIGNS[2], "sign tables of the document"


def main():
    cases = read_vectors(sys.argv[1])
    for case in cases:
        for number, row in case["rows"].items():
            check_row(f"{case['name']} head_dim {case['head_dim']} record {number}", row,
                      decode_record(case["name"], case["head_dim"], bytes.fromhex(row["record"])))
        check_page(case, "key_page")
        check_page(case, "value_page")
    if len(sys.argv) > 2:
        check_signs(sys.argv[2])
    names = {case["name"] for case in cases}
    assert names == {"f16", *TYPES}, names
    print(f"{sum(len(case['rows']) for case in cases)} rows decoded as expected")


if __name__ == "__main__":
    with np.errstate(invalid="ignore"):
        main()
