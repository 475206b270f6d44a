#!/usr/bin/env python3
"""README's tables of a report of launch/gpu_check.sh, as Markdown.

    python3 tests/gpu_reports/table.py tests/gpu_reports/h200.json
"""
import json
import sys


def table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def percent(x):
    return f"{100 * x:.0f} %"


def attention(report):
    """A row a shape, depth and batch: dense beside the policies of one budget."""
    rows = []
    for name in ("kernels_32_8", "kernels_64_8", "kernels_32_32"):
        bench = report.get(name)
        if bench is None:
            continue
        heads = "{} / {}".format(*name.split("_")[1:])
        steps = [r for r in bench["results"] if r["name"] == "step"]
        for dense in (r for r in steps if r["attention"] == "dense"):
            for other in steps:
                if other["attention"] == "dense" or (other["depth"], other["batch"]) != (dense["depth"], dense["batch"]):
                    continue
                rows.append([heads, f'{dense["depth"]:,}', str(dense["batch"]), f'{1e6 * dense["seconds"]:.0f}',
                             f'{dense["gb_s"]:.0f}', percent(dense["share_of_copy_bandwidth"]),
                             f'{1e6 * other["selection_seconds"]:.0f} + {1e6 * other["attention_seconds"]:.0f}',
                             f'{other["speedup"]:.1f}'])
    table(["query / KV heads", "tokens", "batch", "dense, µs", "GB/s", "of the copy bandwidth", "quest: select + attend, µs",
           "times faster"], rows)


def paper(report):
    bench = report.get("quest_paper")
    if bench is None:
        return
    steps = [r for r in bench["results"] if r["name"] == "step"]
    depths = sorted({r["depth"] for r in steps})
    budgets = sorted({r["token_budget"] for r in steps if r["token_budget"] is not None})
    rows = []
    for budget in budgets:
        cells = [str(budget)]
        for depth in depths:
            found = [r for r in steps if r["token_budget"] == budget and r["depth"] == depth]
            cells.append(f'{found[0]["speedup"]:.2f}' if found and found[0]["speedup"] is not None else "")
        rows.append(cells)
    table(["budget"] + [f"{d:,} tokens" for d in depths], rows)


def steps(report):
    rows = []
    for name in ("decode", "decode_long"):
        for r in (report.get(name) or {"results": []})["results"]:
            rows.append([f'{r["depth"]:,}', str(r["batch"]), r["attention"], f'{1e3 * r["seconds"]:.2f}', f'{r["tok_s"]:.0f}',
                         percent(r["share_of_copy_bandwidth"])])
    table(["tokens in the cache", "batch", "attention", "ms a step", "tok/s", "of the copy bandwidth"], rows)


def prefill(report):
    rows = []
    kernels = {r["length"]: r for r in (report.get("kernels_32_8") or {"results": []})["results"]
               if r["name"] == "prefill_attention"}
    for r in (report.get("prefill") or {"results": []})["results"]:
        alone = kernels.get(r["length"])
        rows.append([f'{r["length"]:,}', f'{r["tok_s"]:.0f}', percent(r["share_of_matmul_rate"]),
                     percent(alone["share_of_matmul_rate"]) if alone else ""])
    table(["tokens", "tok/s", "of the product rate", "attention alone"], rows)


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with open(sys.argv[1]) as file:
        report = json.load(file)
    machine = report["kernels_32_8"]["machine"]
    print(f'{report["gpu"]}, commit {report["commit"][:7]}, {report["date"]}: copies {machine["copy_gb_s"]:.0f} GB/s, '
          f'bf16 products {machine["matmul_gflop_s"] / 1e3:.0f} TFLOP/s\n')
    attention(report)
    paper(report)
    steps(report)
    prefill(report)


if __name__ == "__main__":
    main()
