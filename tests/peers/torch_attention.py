#!/usr/bin/env python3
"""Attention of PyTorch on a GPU at the shapes of `quire bench kernels`: scaled_dot_product_attention and, with --flex,
FlexAttention, over contiguous caches of random bf16 numbers. Times by events, medians, a copy of more than the last-level
cache before each; the copy bandwidth of the same minutes beside them. Prints one JSON object.

    python3 tests/peers/torch_attention.py --batch 1,16 --depth 4096,32768 --heads 32:8 --prefill 2048,8192
"""
import argparse
import json
import statistics

import torch
import torch.nn.functional as F


class Clock:
    """Seconds of work on the GPU, with cold caches; and what a copy takes."""

    def __init__(self):
        self.source = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
        self.target = torch.empty_like(self.source)
        self.copies = []

    def time(self, run, repeats):
        seconds = []
        for repeat in range(repeats + 1):  # the first one warms up
            events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
            events[0].record()
            self.target.copy_(self.source)
            events[1].record()
            run()
            events[2].record()
            torch.cuda.synchronize()
            if repeat > 0:
                self.copies.append(events[0].elapsed_time(events[1]) / 1e3)
                seconds.append(events[1].elapsed_time(events[2]) / 1e3)
        return statistics.median(seconds)

    def copy_gb_s(self):
        return 2 * self.source.numel() / statistics.median(self.copies) / 1e9


def decode_rows(clock, args, heads, flex):
    q_heads, kv_heads = heads
    for batch in args.batch:
        for depth in args.depth:
            cache = 4.0 * batch * depth * kv_heads * args.head_dim
            if cache > 0.8 * torch.cuda.mem_get_info()[0]:
                continue
            k = torch.randn(batch, kv_heads, depth, args.head_dim, dtype=torch.bfloat16, device="cuda")
            v = torch.randn_like(k)
            q = torch.randn(batch, q_heads, 1, args.head_dim, dtype=torch.bfloat16, device="cuda")
            kinds = {"torch_sdpa": lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=q_heads != kv_heads)}
            if flex is not None:
                kinds["torch_flex_attention"] = lambda: flex(q, k, v, enable_gqa=q_heads != kv_heads)
            for name, run in kinds.items():
                seconds = clock.time(run, args.repeats)
                yield {"name": name, "batch": batch, "depth": depth, "q_heads": q_heads, "kv_heads": kv_heads,
                       "seconds": seconds, "bytes": cache, "gb_s": cache / seconds / 1e9}
            del k, v, q


def prefill_rows(clock, args, heads):
    q_heads, kv_heads = heads
    for length in args.prefill:
        k = torch.randn(1, kv_heads, length, args.head_dim, dtype=torch.bfloat16, device="cuda")
        v = torch.randn_like(k)
        q = torch.randn(1, q_heads, length, args.head_dim, dtype=torch.bfloat16, device="cuda")
        run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q_heads != kv_heads)
        seconds = clock.time(run, args.repeats)
        flops = 4.0 * args.head_dim * q_heads * length * (length + 1) / 2
        yield {"name": "torch_sdpa_prefill", "length": length, "q_heads": q_heads, "kv_heads": kv_heads,
               "seconds": seconds, "gflop_s": flops / seconds / 1e9}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(x) for x in text.split(",") if x]
    parser.add_argument("--batch", type=numbers, default=[1, 16])
    parser.add_argument("--depth", type=numbers, default=[4096, 32768])
    parser.add_argument("--prefill", type=numbers, default=[])
    parser.add_argument("--heads", default="32:8", help="q:kv, several separated by commas")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--flex", action="store_true", help="FlexAttention too (compiles for a while)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch_attention.py: PyTorch finds no GPU here")
    flex = None
    if args.flex:
        from torch.nn.attention.flex_attention import flex_attention
        flex = torch.compile(flex_attention, dynamic=False)
    clock = Clock()
    rows = []
    for pair in args.heads.split(","):
        heads = tuple(int(x) for x in pair.split(":"))
        rows += decode_rows(clock, args, heads, flex)
        rows += prefill_rows(clock, args, heads)
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_gb_s": clock.copy_gb_s(),
                      "results": rows}))


if __name__ == "__main__":
    main()
