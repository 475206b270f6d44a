#!/usr/bin/env python3
"""What each kernel takes of a multiprocessor, as compiled: registers of a thread, its stack, and static shared memory of a
block, from min to max over a kernel's instantiations, for each architecture in the library. Markdown, of what cuobjdump (of
the CUDA toolkit; --cuobjdump says where) lists. It lists no spills: they would lie in the stack, and a build with
QUIRE_WERROR fails at any. From sm_90 on, kernels with shared memory show the 1,024 bytes of it that the system keeps.

    python3 tests/gpu_reports/registers.py build/release/lib/libquire_cuda_kernels.a
"""
import argparse
import collections
import re
import shutil
import subprocess


def span(values):
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


def joined(cells):
    """One cell for all architectures, in their order; once where they agree."""
    return cells[0] if len(set(cells)) == 1 else " / ".join(cells)


def usage(listing):
    """(architecture, mangled name, registers, stack and local bytes, static shared bytes) of every kernel in the listing."""
    arch = function = None
    for line in listing.splitlines():
        if found := re.match(r"arch = sm_(\d+)", line):
            arch = int(found[1])
        elif found := re.match(r"\s*Function (\w+):", line):
            function = found[1]
        elif found := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, found.groups())
            yield arch, function, registers, stack + local, shared


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="the library of kernels, or its object files")
    parser.add_argument("--cuobjdump", default=shutil.which("cuobjdump") or "/usr/local/cuda/bin/cuobjdump")
    args = parser.parse_args()
    rows = []
    for file in args.files:
        try:
            listed = subprocess.run([args.cuobjdump, "--dump-resource-usage", file], capture_output=True, text=True, check=True)
        except OSError as error:
            raise SystemExit(f"registers.py: {args.cuobjdump} can't be run ({error}); give --cuobjdump")
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"registers.py: cuobjdump of {file}: {error.stderr.strip()}")
        rows += usage(listed.stdout)
    if not rows:
        raise SystemExit("registers.py: no kernels in " + ", ".join(args.files))
    names = subprocess.run(["c++filt"], input="\n".join(row[1] for row in rows), capture_output=True, text=True, check=True)
    kernels = collections.defaultdict(lambda: collections.defaultdict(list))  # name → architecture → its instantiations
    for name, (arch, _, *numbers) in zip(names.stdout.splitlines(), rows):
        kernel = re.search(r"simt::Entry<(?:\w+::|\(anonymous namespace\)::)*(\w+)", name)
        kernels[kernel[1] if kernel else name][arch].append(numbers)
    archs = sorted({row[0] for row in rows})
    header = ["kernel", "instantiations"] + [f"registers, sm_{arch}" for arch in archs]
    header += ["stack, B", "static shared, B"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for name in sorted(kernels):
        of = [kernels[name][arch] for arch in archs]  # an architecture may lack a kernel
        columns = [[span(column) for column in zip(*instances)] or ["–"] * 3 for instances in of]
        registers, stack, shared = zip(*columns)
        print("| " + " | ".join([name, joined([str(len(x)) for x in of]), *registers, joined(stack), joined(shared)]) + " |")


if __name__ == "__main__":
    main()
