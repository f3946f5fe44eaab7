#!/usr/bin/env python3
"""fp16 attention through PyTorch's scaled_dot_product_attention, as `turbokv bench attention --device
cuda` measures ours: medians of CUDA-graph replays over buffers that are together larger than the
L2 cache, beside a copy within the device's memory. Every query sees all tokens: cuDNN's form has no
mask for queries that are the last of more tokens, and few of many is no difference to speak of.
Needs PyTorch with CUDA.

usage: sdpa_baseline.py [--batch B] [--tokens N] [--kv-heads H] [--group G] [--head-dim D]
                        [--queries Q] [--repetitions R] [--json]
"""
import argparse
import json
import statistics
import sys

ROTATED_BYTES = 400 << 20
COPY_BYTES = 512 << 20
MIN_CALLS = 32


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch', type=int, default=1, help='sequences in one call (1)')
    parser.add_argument('--tokens', type=int, default=16384, help='tokens of context (16384)')
    parser.add_argument('--kv-heads', type=int, default=8, help='KV heads (8)')
    parser.add_argument('--group', type=int, default=4, help='query heads a KV head (4)')
    parser.add_argument('--head-dim', type=int, default=128, help='size of a head (128)')
    parser.add_argument('--queries', type=int, default=1, help='query tokens, the last ones (1)')
    parser.add_argument('--repetitions', type=int, default=21, help='graph replays (21)')
    parser.add_argument('--json', action='store_true', help='print JSON')
    return parser.parse_args()


def time_events(torch, run):
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e-3


def copy_bandwidth(torch):
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device='cuda')
    target = torch.empty_like(source)
    seconds = [time_events(torch, lambda: target.copy_(source)) for _ in range(15)]
    return 2 * COPY_BYTES / statistics.median(seconds)


def time_graph(torch, attend, n_calls, repetitions):
    """Median seconds of one call attend(i)."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(3):
            attend(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(n_calls):
            attend(i)
    graph.replay()
    seconds = [time_events(torch, graph.replay) / n_calls for _ in range(repetitions)]
    return statistics.median(seconds), min(seconds)


def measure_backend(torch, backend, arguments, q, keys, values):
    from torch.nn.attention import sdpa_kernel
    attend_now = torch.nn.functional.scaled_dot_product_attention

    def attend(i):
        with sdpa_kernel(backend):
            return attend_now(q, keys[i % len(keys)], values[i % len(keys)], enable_gqa=True)

    n_calls = max(MIN_CALLS, len(keys))
    return time_graph(torch, attend, n_calls, arguments.repetitions)


def measure(torch, arguments):
    from torch.nn.attention import SDPBackend
    a = arguments
    kv_shape = (a.batch, a.kv_heads, a.tokens, a.head_dim)
    n_bytes = 2 * 2 * a.batch * a.kv_heads * a.tokens * a.head_dim
    n_copies = min(64, ROTATED_BYTES // n_bytes + 1)
    make = lambda shape: torch.randn(shape, device='cuda', dtype=torch.float16)
    keys = [make(kv_shape) for _ in range(n_copies)]
    values = [make(kv_shape) for _ in range(n_copies)]
    q = make((a.batch, a.kv_heads * a.group, a.queries, a.head_dim))
    bandwidth = copy_bandwidth(torch)
    result = {'device': torch.cuda.get_device_name(), 'torch': torch.__version__,
              'copy_bytes_per_second': bandwidth, 'bytes': n_bytes, **vars(a), 'backends': []}
    for name, backend in (('cudnn', SDPBackend.CUDNN_ATTENTION),
                          ('flash', SDPBackend.FLASH_ATTENTION)):
        try:
            median, best = measure_backend(torch, backend, a, q, keys, values)
        except RuntimeError as reason:
            print(f'sdpa_baseline: {name} does not have this shape: '
                  f'{str(reason).splitlines()[0]}', file=sys.stderr)
            continue
        result['backends'].append({'backend': name, 'median_seconds': median, 'best_seconds': best,
                                   'share_of_copy': n_bytes / median / bandwidth})
    return result


def print_table(result):
    print(f"{result['device']}; memory is copied at {result['copy_bytes_per_second'] * 1e-9:.0f} "
          f"GB/s, read and written\n{result['batch']} x {result['tokens']} tokens, "
          f"{result['kv_heads']} KV heads of {result['head_dim']}, {result['group']} query heads "
          f"each, {result['queries']} queries; medians of {result['repetitions']} graph replays")
    print(f"{'backend':<9} {'us':>9} {'best us':>9} {'GB/s':>8} {'of copy':>8}")
    for b in result['backends']:
        print(f"{b['backend']:<9} {1e6 * b['median_seconds']:>9.2f} {1e6 * b['best_seconds']:>9.2f} "
              f"{result['bytes'] / b['median_seconds'] * 1e-9:>8.0f} "
              f"{100 * b['share_of_copy']:>7.1f}%")


def main():
    arguments = parse_arguments()
    try:
        import torch
    except ImportError:
        sys.exit('sdpa_baseline: needs PyTorch')
    if not torch.cuda.is_available():
        sys.exit('sdpa_baseline: PyTorch finds no CUDA device')
    result = measure(torch, arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print_table(result)


if __name__ == '__main__':
    main()
