#!/usr/bin/env python3
"""The constants of --attention auto for GPUs (kernels/selection/cost_model.h) from a report of launch/gpu_check.sh.

    python3 tests/gpu_reports/costs.py tests/gpu_reports/h200.json

A GPU takes lists side by side, so what a call costs beside its bytes is shared among them. Fitted, with the least squares of
relative errors, over all steps of the rows of 32 query and 8 KV heads (batch 1 to 64, 4,096 to 131,072 tokens):

    dense:  call_dense + lists * n * t * dense_byte
    quest:  call_quest + lists * (n/S * m * select_byte + B * t * sparse_byte)       lists = batch * 8

The model counts by lists: fixed is what quest's call costs more, for 64 lists, a batch of eight.
"""
import json
import sys

PAGE_SIZE, TOKEN_BYTES, METADATA_BYTES, KV_HEADS, LISTS = 16, 512, 512, 8, 64


def solve(rows):
    """The x with the least squares of 1 - features · x over rows of features, each over the time it stands for."""
    n = len(rows[0])
    a = [[sum(r[i] * r[j] for r in rows) for j in range(n)] + [sum(r[i] for r in rows)] for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(a[r][i]))
        a[i], a[pivot] = a[pivot], a[i]
        for r in range(n):
            if r != i:
                factor = a[r][i] / a[i][i]
                a[r] = [x - factor * y for x, y in zip(a[r], a[i])]
    return [a[i][n] / a[i][i] for i in range(n)]


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        results = json.load(file)["kernels_32_8"]["results"]
    dense, quest = [], []
    for row in results:
        if row["name"] != "step":
            continue
        lists, seconds = row["batch"] * KV_HEADS, row["seconds"]
        if row["attention"] == "dense":
            dense.append([1 / seconds, lists * row["depth"] * TOKEN_BYTES / seconds])
        elif row["attention"] == "quest":
            quest.append([1 / seconds, lists * row["depth"] / PAGE_SIZE * METADATA_BYTES / seconds,
                          lists * row["token_budget"] * TOKEN_BYTES / seconds])
    call_dense, dense_byte = solve(dense)
    call_quest, select_byte, sparse_byte = solve(quest)
    fixed = (call_quest - call_dense) / LISTS
    print(f"picoseconds a byte: dense {dense_byte * 1e12:.3f}, sparse {sparse_byte * 1e12:.3f}, select {select_byte * 1e12:.3f}")
    print(f"microseconds: a call of dense {call_dense * 1e6:.1f}, of quest {call_quest * 1e6:.1f}; fixed {fixed * 1e6:.3f}")
    for what, rows, x in (("dense", dense, (call_dense, dense_byte)), ("quest", quest, (call_quest, select_byte, sparse_byte))):
        off = [abs(1 - sum(a * b for a, b in zip(r, x))) for r in rows]
        print(f"{what}: off by {100 * sum(off) / len(off):.0f} % in the mean, {100 * max(off):.0f} % at most")


if __name__ == "__main__":
    main()
