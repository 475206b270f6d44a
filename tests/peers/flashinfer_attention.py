#!/usr/bin/env python3
"""Attention of FlashInfer on a GPU at the shapes of `quire bench kernels`: decode over pages in random places, by CUDA cores
and by tensor cores, and prefill of a prompt in chunks over pages and whole over contiguous K and V, all of random bf16
numbers. Times as torch_attention.py does, of run() alone: plan() serves all layers of a step. Before that a small shape is
held to PyTorch's scaled_dot_product_attention. Kernels that no package brought are compiled at their first call. Prints one
JSON object.

    python3 tests/peers/flashinfer_attention.py --batch 1,16 --depth 4096,32768 --heads 32:8 --prefill 2048,8192
"""
import argparse
import json


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text):
        return [int(x) for x in text.split(",") if x]

    def pairs(text):
        heads = [tuple(int(x) for x in pair.split(":")) for pair in text.split(",")]
        if any(len(pair) != 2 or pair[1] < 1 or pair[0] % pair[1] != 0 for pair in heads):
            raise ValueError(text)
        return heads

    parser.add_argument("--batch", type=numbers, default=[1, 16])
    parser.add_argument("--depth", type=numbers, default=[4096, 32768])
    parser.add_argument("--prefill", type=numbers, default=[])
    parser.add_argument("--chunk", type=int, default=2048, help="rows of a prompt at once, over pages")
    parser.add_argument("--heads", type=pairs, default=[(32, 8)], help="q:kv, several separated by commas")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


class Shape:
    """One number of heads, its caches and FlashInfer's wrappers over them."""

    def __init__(self, flashinfer, torch, args, heads):
        self.flashinfer, self.torch = flashinfer, torch
        self.q_heads, self.kv_heads = heads
        self.dim, self.page_size, self.chunk = args.head_dim, args.page_size, args.chunk
        self.workspace = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda")
        self.dtypes = {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16}

    def randoms(self, *shape):
        return self.torch.randn(*shape, dtype=self.torch.bfloat16, device="cuda")

    def ints(self, *values):
        return self.torch.tensor(values, dtype=self.torch.int32, device="cuda")

    def pages_of(self, tokens):
        return (tokens + self.page_size - 1) // self.page_size

    def last_page(self, tokens):
        return tokens - (self.pages_of(tokens) - 1) * self.page_size

    def cache(self, batch, tokens):
        """(K, V), each [pages, KV heads, page size, head dim] (layout HND), and the ids of the sequences' pages in turn."""
        pages = batch * self.pages_of(tokens)
        shape = (pages, self.kv_heads, self.page_size, self.dim)
        return (self.randoms(*shape), self.randoms(*shape)), self.torch.randperm(pages, device="cuda").int()

    def contiguous(self, paged, ids, tokens):
        """[1, KV heads, tokens, head dim] of the sequence whose pages those are."""
        rows = paged[ids.long()].permute(1, 0, 2, 3).reshape(1, self.kv_heads, -1, self.dim)
        return rows[:, :, :tokens]

    def decode(self, q, cache, ids, tokens, tensor_cores):
        """A call that attends for q [batch, heads, head dim] over sequences of so many tokens."""
        batch, pages = q.shape[0], self.pages_of(tokens)
        wrapper = self.flashinfer.BatchDecodeWithPagedKVCacheWrapper(self.workspace, "HND", use_tensor_cores=tensor_cores)
        wrapper.plan(self.ints(*range(0, (batch + 1) * pages, pages)), ids, self.ints(*[self.last_page(tokens)] * batch),
                     self.q_heads, self.kv_heads, self.dim, self.page_size, **self.dtypes)
        return lambda: wrapper.run(q, cache)

    def paged_prefill(self, q, cache, ids):
        """A call that attends for a prompt's q [rows, heads, head dim], chunk by chunk, each against all before it."""
        parts, rows = [], q.shape[0]
        for begin in range(0, rows, self.chunk):
            end = min(begin + self.chunk, rows)
            pages = self.pages_of(end)
            wrapper = self.flashinfer.BatchPrefillWithPagedKVCacheWrapper(self.workspace, "HND")
            wrapper.plan(self.ints(0, end - begin), self.ints(0, pages), ids[:pages], self.ints(self.last_page(end)),
                         self.q_heads, self.kv_heads, self.dim, self.page_size, causal=True, **self.dtypes)
            parts.append((wrapper, q[begin:end]))
        return lambda: [wrapper.run(part, cache) for wrapper, part in parts]

    def ragged_prefill(self, q, k, v):
        """A call that attends for a prompt's q [rows, heads, head dim] at once; k, v: [rows, KV heads, head dim]."""
        wrapper = self.flashinfer.BatchPrefillWithRaggedKVCacheWrapper(self.workspace, "NHD")
        ends = self.ints(0, q.shape[0])
        wrapper.plan(ends, ends, self.q_heads, self.kv_heads, self.dim, causal=True, **self.dtypes)
        return lambda: wrapper.run(q, k, v)

    def check(self):
        """Ends the script where a small shape differs from PyTorch's."""
        torch = self.torch
        tokens, batch = 5 * self.page_size + 3, 2
        cache, ids = self.cache(batch, tokens)
        ids_of = ids.reshape(batch, -1)
        k, v = ([self.contiguous(x, ids_of[b], tokens) for b in range(batch)] for x in cache)

        def expected(q, b, causal):  # q: [rows, heads, head dim]
            out = torch.nn.functional.scaled_dot_product_attention(
                q.transpose(0, 1)[None], k[b], v[b], is_causal=causal, enable_gqa=self.q_heads != self.kv_heads)
            return out[0].transpose(0, 1)

        q = self.randoms(batch, self.q_heads, self.dim)
        decoded = torch.cat([expected(q[b:b + 1], b, False) for b in range(batch)])
        got = {f"decode, tensor cores {t}": (self.decode(q, cache, ids, tokens, t)(), decoded) for t in (False, True)}
        q = self.randoms(tokens, self.q_heads, self.dim)
        whole, self.chunk = self.chunk, tokens - self.page_size - 1
        got["paged prefill"] = (torch.cat(self.paged_prefill(q, cache, ids_of[0])()), expected(q, 0, True))
        self.chunk = whole
        flat = [x[0][0].transpose(0, 1).contiguous() for x in (k, v)]
        got["ragged prefill"] = (self.ragged_prefill(q, *flat)(), expected(q, 0, True))
        for name, (ours, theirs) in got.items():
            difference = (ours.float() - theirs.float()).abs().max().item()
            if not difference < 3e-2:
                raise SystemExit(f"flashinfer_attention.py: {name} differs from PyTorch's by {difference}")


def decode_rows(clock, args, shape):
    for batch in args.batch:
        for depth in args.depth:
            cache_bytes = 4.0 * batch * depth * shape.kv_heads * shape.dim
            if cache_bytes > 0.8 * shape.torch.cuda.mem_get_info()[0]:
                continue
            cache, ids = shape.cache(batch, depth)
            q = shape.randoms(batch, shape.q_heads, shape.dim)
            for name, tensor_cores in (("flashinfer_decode", False), ("flashinfer_decode_tensor_cores", True)):
                seconds = clock.time(shape.decode(q, cache, ids, depth, tensor_cores), args.repeats)
                yield {"name": name, "batch": batch, "depth": depth, "q_heads": shape.q_heads, "kv_heads": shape.kv_heads,
                       "page_size": shape.page_size, "seconds": seconds, "bytes": cache_bytes,
                       "gb_s": cache_bytes / seconds / 1e9}
            del cache, ids, q


def prefill_rows(clock, args, shape):
    for length in args.prefill:
        cache, ids = shape.cache(1, length)
        q = shape.randoms(length, shape.q_heads, shape.dim)
        k, v = (shape.randoms(length, shape.kv_heads, shape.dim) for _ in range(2))
        runs = {"flashinfer_paged_prefill": (shape.paged_prefill(q, cache, ids), shape.chunk),
                "flashinfer_ragged_prefill": (shape.ragged_prefill(q, k, v), length)}
        flops = 4.0 * shape.dim * shape.q_heads * length * (length + 1) / 2
        for name, (run, chunk) in runs.items():
            seconds = clock.time(run, args.repeats)
            yield {"name": name, "length": length, "chunk": chunk, "q_heads": shape.q_heads, "kv_heads": shape.kv_heads,
                   "seconds": seconds, "gflop_s": flops / seconds / 1e9}


def main():
    args = parse_arguments()
    try:
        import flashinfer
        import torch
    except ImportError as error:
        raise SystemExit(f"flashinfer_attention.py: FlashInfer can't be imported here: {error}") from None
    from torch_attention import Clock
    if not torch.cuda.is_available():
        raise SystemExit("flashinfer_attention.py: PyTorch finds no GPU here")
    clock = Clock()
    rows = []
    for heads in args.heads:
        shape = Shape(flashinfer, torch, args, heads)
        shape.check()
        rows += decode_rows(clock, args, shape)
        rows += prefill_rows(clock, args, shape)
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "flashinfer": flashinfer.__version__, "torch": torch.__version__,
                      "copy_gb_s": clock.copy_gb_s(), "results": rows}))


if __name__ == "__main__":
    main()
