"""Puts what evaluations printed with --format json into one file: merge.py OUTPUT FILE... Leaves out times, which are the
machine's, and the lists by layer; numbers have six digits."""
import json
import sys


def short(value):
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: short(v) for k, v in value.items() if k not in ("seconds", "by_layer")}
    return [short(v) for v in value] if isinstance(value, list) else value


output, *files = sys.argv[1:]
rows = [short(row) for name in files for row in json.load(open(name))["results"]]
with open(output, "w") as out:
    out.write('{"results": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n")
