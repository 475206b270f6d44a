#!/usr/bin/env bash
# What attention policies keep of SmolLM2-135M-Instruct at 2k to 8k tokens: makes smollm2.json and smollm2.html beside this
# script, and prints the figures of README's table "which policy when". BOOK: Pride and Prejudice as Project Gutenberg has
# it (ebook 1342); its header and footer are left out here. Half an hour of an idle core of Zen 4 up to the
# recalls; what follows took an hour and a half of a busy one.
#
#   tests/eval_reports/smollm2.sh BOOK [FOLDER for the evaluations' own json; those that are there are not run again]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../../launch/lib.sh"

[ $# -ge 1 ] || die "usage: tests/eval_reports/smollm2.sh BOOK [FOLDER]"
book=$(realpath "$1")
folder=$(realpath -m "${2:-$(mktemp -d)}")
quire="$QUIRE_ROOT/build/release/bin/quire"
model=$(model_path)
[ -x "$quire" ] || die "$quire isn't built; launch/quickstart.sh does that"
[ -f "$model" ] || die "the model $model isn't there; launch/fetch_model.sh fetches it"
mkdir -p "$folder"
sed -e '1,/^\*\*\* START OF/d' -e '/^\*\*\* END OF/,$d' "$book" > "$folder/book.txt"
text=(--text-file "$folder/book.txt")

sparse=quest,hierarchical,hybrid,sparq,top-p,swa,h2o,tova,streaming
budgets=(--token-budget 256,512,1024)

# evaluate NAME FLAGS…
evaluate() {
  local name=$1
  shift
  [ -s "$folder/$name.json" ] && return
  say "$name: quire eval $*"
  "$quire" eval "$@" --model "$model" --threads 1 --max-num-seqs 32 --kv-cache-memory-bytes 3G --format json > "$folder/$name.part"
  mv "$folder/$name.part" "$folder/$name.json"
}

# Likelihood: in each window the tokens behind its middle, each a decode step with selection.
evaluate perplexity_2048 perplexity "${text[@]}" --context 2048 --max-tokens 8192 --tokens 96 --attention "dense,$sparse" "${budgets[@]}"
evaluate perplexity_4096 perplexity "${text[@]}" --context 4096 --max-tokens 8192 --tokens 96 --attention "dense,$sparse" "${budgets[@]}"
evaluate perplexity_8192 perplexity "${text[@]}" --context 8192 --max-tokens 8192 --tokens 128 --attention "dense,$sparse" "${budgets[@]}"
# Retrieval.
evaluate passkey_2048 passkey --lengths 2048 --depths 5 --attention "dense,$sparse" "${budgets[@]}"
evaluate passkey_4096 passkey --lengths 4096 --depths 5 --attention "dense,$sparse" "${budgets[@]}"
evaluate passkey_7168 passkey --lengths 7168 --depths 5 --attention "dense,$sparse" "${budgets[@]}"
# What the pages hold of the attention.
evaluate recall_8192 recall "${text[@]}" --context 8192 --max-tokens 8192 --tokens 32 --attention "$sparse" "${budgets[@]}"
evaluate recall_4096 recall "${text[@]}" --context 4096 --max-tokens 4096 --tokens 32 --attention "$sparse" "${budgets[@]}"
evaluate recall_2048 recall "${text[@]}" --context 2048 --max-tokens 2048 --tokens 32 --attention "$sparse" "${budgets[@]}"

# Dense's own tokens.
for context in 2048 4096 8192; do
  evaluate agreement_$context agreement "${text[@]}" --context $context --max-tokens 8192 --tokens 64 --attention "$sparse" "${budgets[@]}"
done
# Quest's options, which its defaults are chosen from: more keys a cell.
options=quest:group_reduce=mean,quest:dense_layers=0,quest:dense_layers=1
for context in 2048 4096 8192; do
  tokens=$((context == 8192 ? 128 : 96))
  evaluate options_perplexity_$context perplexity "${text[@]}" --context $context --max-tokens 8192 --tokens $tokens --attention "$options" "${budgets[@]}"
done
for context in 4096 8192; do
  evaluate options_recall_$context recall "${text[@]}" --context $context --max-tokens $context --tokens 32 --attention "$options" "${budgets[@]}"
done
evaluate options_passkey_2048 passkey --lengths 2048 --depths 20 --attention "quest:group_reduce=max,$options" "${budgets[@]}"
evaluate options_passkey_4096 passkey --lengths 4096 --depths 10 --attention quest:group_reduce=max,quest:group_reduce=mean --token-budget 256,512
# Policies that evict: by tokens, in all layers; their prompts go row by row beyond the budget, so at one length alone.
evict=streaming:evict=true,h2o:evict=true,tova:evict=true
evaluate evict_perplexity_2048 perplexity "${text[@]}" --context 2048 --max-tokens 8192 --tokens 96 --attention "$evict" "${budgets[@]}"
evaluate evict_passkey_2048 passkey --lengths 2048 --depths 5 --attention "$evict" --token-budget 256

names=({perplexity,agreement}_{2048,4096,8192} passkey_{2048,4096,7168} recall_{2048,4096,8192} options_perplexity_{2048,4096,8192}
  options_recall_{4096,8192} options_passkey_{2048,4096} evict_{perplexity,passkey}_2048)
cd "$folder"
python3 "$here/merge.py" "$here/smollm2.json" "${names[@]/%/.json}"
"$quire" eval report --json "$here/smollm2.json" --output "$here/smollm2.html" --title "SmolLM2-135M-Instruct under attention policies"
python3 "$here/table.py" "$here/smollm2.json"
