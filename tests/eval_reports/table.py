"""The figures of README's tables from a report's json: table.py FILE.

First "which policy when", a row a policy with its own defaults: bytes read of K and V at the longest context and a budget of
512; then by budget perplexity at each context over dense's, recall, agreement and pass keys found. Then a row for each policy
with options of its own, keys of those hidden."""
import json
import sys

KINDS = ("perplexity", "recall", "agreement", "correct")
rows = json.load(open(sys.argv[1]))["results"]
policies, values = [], {}
for row in rows:
    name = ":".join(part for part in row["spec"].split(":") if not part.startswith("token_budget="))
    if name not in policies:
        policies.append(name)
    kind = next(k for k in KINDS if k in row)
    if row[kind] is not None:
        values[kind, name, row["context"], row["token_budget"]] = row


def by_budget(kind, policy, context, show):
    if policy == "dense":
        row = values.get((kind, policy, context, None))
        return show(row) if row else "–"
    found = [values.get((kind, policy, context, budget)) for budget in (256, 512, 1024)]
    return " / ".join(show(row) if row else "–" for row in found)


def over_dense(context):
    dense = values["perplexity", "dense", context, None]["perplexity"]
    return lambda row: f"{row['perplexity']:.2f}" if row["attention"] == "dense" else f"{row['perplexity'] / dense - 1:+.1%}"


def table(names, keys):
    contexts = {k: sorted({c for kind, name, c, _ in values if kind == k and name in names}) for k in KINDS}
    titles = {"perplexity": "perplexity", "recall": "recall", "agreement": "agreement", "correct": "keys"}
    print("| policy | read |" + "".join(f" {titles[k]}, {c:,} |" for k in KINDS for c in contexts[k]))
    print("|---|---|" + "---|" * sum(len(c) for c in contexts.values()))
    longest = max((c for kind, _, c, _ in values if kind == "perplexity"))
    for policy in names:
        row = values.get(("perplexity", policy, longest, None if policy == "dense" else 512))
        cells = [policy, f"{row['bytes_read'] / row['bytes_total']:.0%}" if row else "–"]
        cells += [by_budget("perplexity", policy, c, over_dense(c)) for c in contexts["perplexity"]]
        cells += [by_budget("recall", policy, c, lambda r: f"{r['recall']:.2f}") for c in contexts["recall"]]
        cells += [by_budget("agreement", policy, c, lambda r: f"{r['agreement']:.2f}") for c in contexts["agreement"]]
        cells += [by_budget("correct", policy, c, keys) for c in contexts["correct"]]
        print("| " + " | ".join(cells) + " |")


table([p for p in policies if ":" not in p], lambda r: str(r["correct"]))
print()
table([p for p in policies if ":" in p], lambda r: f"{r['correct']} of {r['trials']}")
