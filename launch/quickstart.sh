#!/usr/bin/env bash
# From nothing but this repository to a language model that answers: installs the system packages, builds, fetches
# SmolLM2-135M-Instruct once, and lets it answer a question about a text four times longer than its page budget.
# Where the model can't be fetched, the committed retriever finds a pass key in a long text instead. Safe to run again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ $# -gt 0 ]; then
  echo "usage: launch/quickstart.sh    installs, builds, fetches a model and lets it answer a question" >&2
  case "$1" in -h | --help) exit 0 ;; *) die "it takes no arguments, and got $1" ;; esac
fi

launch/install_deps.sh
BUILD_TARGET=quire_program build_preset release
quire=build/release/bin/quire

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if model=$(launch/fetch_model.sh); then
  question="Mrs. Bennet says that Netherfield Park is taken by a young man of large fortune. What is the surname of this young man?"
  { cat launch/quickstart_passage.txt; printf '\n%s\n' "$question"; } > "$work/prompt.txt"
  say "Asking about $(wc -w < "$work/prompt.txt") words of Pride and Prejudice, with Quest reading at most 512 tokens' pages a step:"
  say "$question"
  "$quire" generate --model "$model" --chat --prompt-file "$work/prompt.txt" --max-tokens 64 \
    --attention quest:token_budget=512 || die "quire generate failed; its error is above"
else
  say "The model can't be fetched here (its reason is above). The small retriever that this repository carries finds a pass key in a long text instead."
  # 7,900 bytes, and the retriever reads bytes: filler, the key in its middle, the question at the end.
  key=$(printf '%05d' $((RANDOM % 100000)))
  filler() { local text=""; while [ ${#text} -lt "$1" ]; do
    text+="The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "; done
    printf '%s' "${text:0:$1}"; }
  { filler 3900
    printf '\nThe pass key is %s. Remember it. %s is the pass key.\n' "$key" "$key"
    filler 3850
    printf '\nWhat is the pass key? The pass key is '; } > "$work/prompt.txt"
  say "A text of $(wc -c < "$work/prompt.txt") characters hides the pass key $key; Quest reads at most 256 tokens' pages a step:"
  "$quire" generate --model tests/data/retriever-2m --prompt-file "$work/prompt.txt" --max-tokens 5 \
    --attention quest:token_budget=256:dense_layers=0 | tee "$work/answer.txt" || die "quire generate failed; its error is above"
  grep -q "$key" "$work/answer.txt" || die "the retriever answered $(cat "$work/answer.txt"), not $key"
fi
say "Done. Try: $quire --help"
