"""The figures of README's table "which policy when" from a report's json: table.py FILE.

A row a policy: bytes read of K and V at 8,192 tokens and a budget of 512; then by budget perplexity at each context over
dense's, recall and pass keys found."""
import json
import sys

rows = json.load(open(sys.argv[1]))["results"]
policies, values = [], {}
for row in rows:
    if row["attention"] not in policies:
        policies.append(row["attention"])
    kind = next(k for k in ("perplexity", "recall", "correct") if k in row)
    values[kind, row["attention"], row["context"], row["token_budget"]] = row


def by_budget(kind, policy, context, show):
    if policy == "dense":
        row = values.get((kind, policy, context, None))
        return show(row) if row else "–"
    found = [values.get((kind, policy, context, budget)) for budget in (256, 512, 1024)]
    return " / ".join(show(row) if row else "–" for row in found)


def over_dense(context):
    dense = values["perplexity", "dense", context, None]["perplexity"]
    return lambda row: f"{row['perplexity']:.2f}" if row["attention"] == "dense" else f"{row['perplexity'] / dense - 1:+.1%}"


contexts = {k: sorted({c for kind, _, c, _ in values if kind == k}) for k in ("perplexity", "recall", "correct")}
print("| policy | read |" + "".join(f" perplexity, {c:,} |" for c in contexts["perplexity"])
      + "".join(f" recall, {c:,} |" for c in contexts["recall"]) + "".join(f" keys, {c:,} |" for c in contexts["correct"]))
print("|---|---|" + "---|" * sum(len(c) for c in contexts.values()))
for policy in policies:
    longest = max(contexts["perplexity"])
    row = values.get(("perplexity", policy, longest, None if policy == "dense" else 512))
    cells = [policy, f"{row['bytes_read'] / row['bytes_total']:.0%}" if row else "–"]
    cells += [by_budget("perplexity", policy, c, over_dense(c)) for c in contexts["perplexity"]]
    cells += [by_budget("recall", policy, c, lambda r: f"{r['recall']:.2f}") for c in contexts["recall"]]
    cells += [by_budget("correct", policy, c, lambda r: str(r["correct"])) for c in contexts["correct"]]
    print("| " + " | ".join(cells) + " |")
