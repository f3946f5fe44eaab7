"""Looks at MLX from inside: what `turbokv gate --mlx` runs with the user's Python.

Reads known answers of the library as JSON from standard input and prints one JSON object a line:
{"step": name, "ok": true or false, "detail": text}. A step that kills the interpreter is the one
after the last line.
"""
import json
import sys


def say(step, ok, detail):
    print(json.dumps({"step": step, "ok": bool(ok), "detail": str(detail)[:300]}), flush=True)


def step(name):
    """Runs the decorated function; what it raises is a failure, its result the detail."""
    def decorate(function):
        say("begin", True, name)
        try:
            ok, detail = function()
        except Exception as error:  # whatever a foreign module raises
            ok, detail = False, f"{type(error).__name__}: {error}"
        say(name, ok, detail)
        return function
    return decorate


# The calls that a bridge needs (docs/GATE.md): keys and values come in as arrays, are coded, kept as
# 32-bit words, and attended on by a kernel of ours; the rest is decoded for MLX's own attention. The
# quantised cache is what to compare with.
CALLS = {
    "arrays": ["array", "eval", "view", "concatenate", "zeros", "take", "uint32", "float16",
               "bitwise_and", "left_shift", "right_shift"],
    "rotation": ["hadamard_transform"],
    "kernels": ["fast.metal_kernel"],
    "attention": ["fast.scaled_dot_product_attention"],
    "quantised cache": ["quantize", "dequantize", "quantized_matmul"],
    "streams, memory": ["default_device", "default_stream", "synchronize", "get_peak_memory"],
}
CACHE = ["make_prompt_cache", "KVCache"]
CACHE_METHODS = ["update_and_fetch", "state", "trim", "is_trimmable"]


def missing(root, names):
    found = []
    for name in names:
        at = root
        for part in name.split("."):
            at = getattr(at, part, None)
        if at is None:
            found.append(name)
    return found


def rotate(mx, x, signs):
    """docs/FORMAT.md, section 3."""
    d = x.shape[-1]
    p = 1 << (d.bit_length() - 1)
    for sign in signs:
        head = mx.hadamard_transform(x[:, :p] * sign[:p], scale=p ** -0.5)
        x = mx.concatenate([head, x[:, p:]], axis=1)
        if p < d:
            tail = mx.hadamard_transform(x[:, d - p:] * sign[d - p:], scale=p ** -0.5)
            x = mx.concatenate([x[:, :d - p], tail], axis=1)
    return x


def unrotate(mx, y, signs):
    d = y.shape[-1]
    p = 1 << (d.bit_length() - 1)
    for sign in reversed(signs):
        if p < d:
            tail = mx.hadamard_transform(y[:, d - p:], scale=p ** -0.5) * sign[d - p:]
            y = mx.concatenate([y[:, :d - p], tail], axis=1)
        head = mx.hadamard_transform(y[:, :p], scale=p ** -0.5) * sign[:p]
        y = mx.concatenate([head, y[:, p:]], axis=1)
    return y


def distance(mx, a, b):
    """|a - b| / |b|"""
    return (mx.sqrt(mx.sum((a - b) ** 2)) / mx.sqrt(mx.sum(b ** 2))).item()


def check_rotation(mx, known):
    worst = 0.0
    for case in known["rotation"]:
        x, y = mx.array(case["x"]), mx.array(case["y"])
        signs = [mx.array(s) for s in case["signs"]]
        worst = max(worst, distance(mx, rotate(mx, x, signs), y),
                    distance(mx, unrotate(mx, y, signs), x))
    return worst < 1e-5, f"relative error {worst:.1e} on {len(known['rotation'])} head sizes"


def check_rows(mx, known):
    """Codes rows and decodes them again, and decodes the library's."""
    notes = []
    good = True
    for case in known["rows"]:
        x, decoded = mx.array(case["x"]), mx.array(case["decoded"])
        signs = [mx.array(s) for s in case["signs"]]
        levels, thresholds = mx.array(case["levels"]), mx.array(case["thresholds"])
        codes, scale = mx.array(case["codes"]), mx.array(case["scales"])
        y = rotate(mx, x, signs)
        norm2 = mx.sum(y * y, axis=1, keepdims=True)
        z = y * mx.sqrt(y.shape[1] / norm2)
        own = mx.sum((z[:, :, None] > thresholds).astype(mx.int32), axis=2)
        own_levels = mx.take(levels, own)
        own_scale = norm2 / mx.sum(y * own_levels, axis=1, keepdims=True)
        differing = mx.mean((own != codes).astype(mx.float32)).item()
        trip = distance(mx, unrotate(mx, own_scale * own_levels, signs), decoded)
        given = distance(mx, unrotate(mx, scale[:, None] * mx.take(levels, codes), signs), decoded)
        good = good and differing < 0.002 and trip < 0.02 and given < 1e-5
        notes.append(f"{case['type']} decoded to {given:.1e}, {100 * differing:.2f} % other codes")
    return good, "; ".join(notes)


def check_words(mx, known):
    """Codes out of a turbo4 row's words, section 6: word c % 4 of a group, nibble c / 4."""
    words = mx.array(known["words"]["words"], dtype=mx.uint32)
    codes = mx.array(known["words"]["codes"])
    d = codes.shape[0]
    c = mx.arange(d)
    word = mx.take(words, c // 32 * 4 + c % 4)
    own = mx.bitwise_and(mx.right_shift(word, (4 * (c % 32 // 4)).astype(mx.uint32)), 15)
    differing = mx.sum((own.astype(mx.int32) != codes).astype(mx.int32)).item()
    return differing == 0, f"{d - differing} of {d} codes unpacked as the library packs them"


def check_kernel(mx, known):
    """The same in a Metal kernel that MLX compiles."""
    words = mx.array(known["words"]["words"], dtype=mx.uint32)
    codes = mx.array(known["words"]["codes"])
    d = codes.shape[0]
    kernel = mx.fast.metal_kernel(
        name="turbokv_probe", input_names=["words"], output_names=["codes"],
        source="""
            uint c = thread_position_in_grid.x;
            codes[c] = int(words[c / 32 * 4 + c % 4] >> (4 * (c % 32 / 4)) & 15u);
        """)
    own, = kernel(inputs=[words], grid=(d, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(d,)],
                  output_dtypes=[mx.int32])
    differing = mx.sum((own != codes).astype(mx.int32)).item()
    return differing == 0, f"{d - differing} of {d} codes right"


def check_attention(mx, known):
    q, k, v = (mx.array(known["attention"][name]) for name in "qkv")
    scale = q.shape[-1] ** -0.5
    fused = mx.fast.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0]
    weights = mx.softmax(scale * (q @ mx.swapaxes(k, 1, 2)), axis=-1)
    error = distance(mx, fused, weights @ v)
    expected = distance(mx, fused, mx.array(known["attention"]["out"]))
    return error < 1e-4 and expected < 1e-3, \
        f"relative error {error:.1e}; {expected:.1e} from the library's on f16"


def main():
    known = json.load(sys.stdin)
    say("python", sys.version_info >= (3, 8), sys.version.split()[0])
    say("begin", True, "mlx")
    try:
        import mlx.core as mx
        version = getattr(mx, "__version__", "of unknown version")
    except Exception as error:
        say("mlx", False, f"cannot be imported ({type(error).__name__}: {error}): "
            f"{sys.executable} -m pip install mlx mlx-lm")
        return
    say("mlx", True, version)
    has_metal = False

    @step("mlx-lm")
    def _():
        import mlx_lm
        from mlx_lm.models import cache
        lacking = missing(cache, CACHE) + missing(cache.KVCache, CACHE_METHODS)
        version = getattr(mlx_lm, "__version__", "of unknown version")
        return not lacking, version + (f" lacks {', '.join(lacking)}" if lacking else "")

    for group, names in CALLS.items():
        lacking = missing(mx, names)
        say(f"calls: {group}", not lacking,
            f"missing in this version: {', '.join(lacking)}" if lacking else ", ".join(names))

    @step("metal")
    def _():
        nonlocal has_metal
        has_metal = mx.metal.is_available()
        device = str(mx.default_device())
        if has_metal:
            info = getattr(mx, "device_info", None) or mx.metal.device_info
            device = f"{info().get('device_name', '?')}, {info().get('architecture', '?')}"
        return has_metal, device if has_metal else f"not available, MLX runs on {device}"

    step("rotation")(lambda: check_rotation(mx, known))
    step("words")(lambda: check_words(mx, known))
    step("round trip")(lambda: check_rows(mx, known))
    step("attention")(lambda: check_attention(mx, known))
    if has_metal:
        step("metal kernel")(lambda: check_kernel(mx, known))
    say("end", True, "")


main()
