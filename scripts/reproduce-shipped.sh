#!/usr/bin/env bash
# Makes every result of every study in `pipelines/` again, on another number of cores and elsewhere, and holds them against each
# other to the bit (`reliability.py reproduce`, see docs/reliability.md). Where a study reads what is not at hand, samples of data
# and small models stand in for it, and what takes hours is asked to take fewer epochs: the graph is the shipped one, and whatever
# a kind does it does. Takes an hour of two cores and no network; ends with an error at the first difference.
#
#     scripts/reproduce-shipped.sh PIPE [STUDY...]
#
# STUDY: names of files in `pipelines/` without their ending; by default all. The samples are in the folder `shared` beside the
# repository, or where PIPE_SAMPLES says.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pipe=$(realpath "$1")
shift
shared=$(realpath "${PIPE_SAMPLES:-$here/../shared}")
data=$shared/data
models=$shared/goldens/models
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
drawn=$work/drawn
"$here/scripts/stand-ins.sh" "$pipe" "$data" "$shared/goldens" "$drawn"
clip=(--var "clip=file:$models/hf-clip-tiny" --set "stage.clip.inputs.tokenizer=file:$drawn/words")
# Of models that answer questions: an epoch each, and narrow.
brief=(
  --var epochs=1 --var qcr_epochs=1 --var explained=2
  --set stage.adapted.params.epochs=1 --set stage.adapted.params.batch=8 --set stage.answering.params.hidden=64
  --set stage.prior_trained.params.hidden=64 --set 'stage.answering[method=cross_modal].params.epochs=1'
)

# What a study reads, and what is asked of it.
given() {
  case $1 in
    thesis | grids | robustness | own-steps) ;;
    planted) given=(--var 'seeds=[1, 2]' --var pairs=500 --var pool=100) ;;
    breastmnist) given=(--var "data=$data/medmnist/breastmnist.npz" --set stage.phantoms.params.train=600 --set stage.tuned.params.epochs=5) ;;
    breast-resnet18) given=(--var "data=$data/medmnist/breastmnist.npz" --var 'seeds=[1, 2]' --var epochs=2) ;;
    medmnist) given=(--var "data=$data/medmnist" --var partial=true) ;;
    vqa-data) given=(--var "vqa_rad=$data/vqa-rad" --var "slake=$data/fixture-slake" --var partial=true) ;;
    caption-data)
      given=(--var "roco=$data/roco" --var "rocov2=$data/rocov2" --var "pmc_oa=$data/fixture-pmc-oa" --var partial=true --var max_rejects=10 --var missing_images=keep)
      given+=(--target roco --target rocov2 --target pmc_oa)
      ;;
    ct-rate) given=(--var "data=$data/fixture-ct-rate/dataset" --var partial=true) ;;
    own-images)
      # Two images of each patient; what a caption holds stays as it is quoted.
      awk 'BEGIN { print "file,finding,patient,report" } NR > 1 { at = index($0, ","); print substr($0, 1, at - 1) ".jpg," (NR % 3 ? "seen" : "none") "," int(NR / 2) substr($0, at) }' \
        "$data/rocov2/test_captions.csv" >"$work/images.csv"
      given=(--var "images=$data/rocov2/test_images" --var "table=$work/images.csv" --var "parquet=$drawn/pairs/images" --var 'columns={ image = "image" }')
      ;;
    models)
      for stage in clip clip_large; do
        given+=(--set "stage.$stage.inputs.source=file:$models/hf-clip-tiny" --set "stage.$stage.inputs.tokenizer=file:$drawn/words")
      done
      given+=(--set "stage.clip_resnet.inputs.source=file:$drawn/clip" --set "stage.clip_resnet.inputs.tokenizer=file:$drawn/words")
      given+=(--set "stage.biomed_clip.inputs.source=file:$models/biomedclip-tiny" --set "stage.biomed_clip.inputs.tokenizer=file:$drawn/bert-120")
      given+=(--set 'stage.biomed_clip.params.config={ vision = { heads = 6 }, text = { num_attention_heads = 4 } }')
      for stage in pmc_clip pmc_clip_split; do
        given+=(--set "stage.$stage.inputs.tokenizer=file:$drawn/bert-110")
        given+=(--set "stage.$stage.params.config={ pool_heads = 4, context = 13, text = { num_attention_heads = 4 } }")
      done
      given+=(--set "stage.pmc_clip.inputs.source=file:$models/pmc-clip-tiny.pt" --set "stage.pmc_clip_split.inputs.source=file:$models/pmc-clip-tiny-split")
      for stage in ct_clip ct_vocab_fine ct_lipro; do
        given+=(--set "stage.$stage.inputs.source=file:$models/ct-clip-tiny.pt" --set "stage.$stage.inputs.tokenizer=file:$drawn/bert-100")
        given+=(--set "stage.$stage.params.config={ text = { num_attention_heads = 3 } }")
      done
      ;;
    slake)
      # The questions at hand have no images: those of VQA-RAD, in turn.
      mkdir -p "$work/slake"
      cp "$data"/slake/*.json "$work/slake"
      cp -r "$data/slake/KG" "$work/slake"
      pictures=("$data"/vqa-rad-mevf/images/*)
      turn=0
      for name in $(grep -oh 'xmlab[0-9]*' "$work"/slake/*.json | sort -u); do
        mkdir -p "$work/slake/imgs/$name"
        cp "${pictures[turn % ${#pictures[@]}]}" "$work/slake/imgs/$name/source.jpg"
        turn=$((turn + 1))
      done
      given=(--var "slake=$work/slake" --var partial=true --var autoencoder_epochs=1 --var meta_steps=1 "${clip[@]}" "${brief[@]}")
      given+=(--set stage.own.params.hidden=64 --set stage.question_only.params.hidden=64 --set 'stage.question_only[method=cross_modal].params.epochs=1')
      given+=(--set 'stage.meta.params.classes=["modality"]')
      ;;
    vqa-rad)
      # Of the questions one in ten, for there are eighty trainings. Which wordings are those of test questions cannot be told
      # then (`clean-2773`), so the second protocol has no templated wordings at all.
      mkdir -p "$work/vqa-rad"
      cp -r "$data"/vqa-rad-mevf/* "$work/vqa-rad"
      chmod -R u+w "$work/vqa-rad"
      python3 - "$work/vqa-rad" <<'PYTHON'
import json, sys
for name in ("trainset", "testset"):
    path = f"{sys.argv[1]}/{name}.json"
    records = json.load(open(path))[::10]
    json.dump(records, open(path, "w"))
PYTHON
      given=(--var "data=$work/vqa-rad" --set stage.data.params.allow_partial=true "${clip[@]}" "${brief[@]}")
      given+=(--var 'protocols=["mevf-3064", "published-1797"]' --var shown=published-1797 --var twins=answer_type)
      given+=(--set 'stage.published_compared.params.equal_protocols=["mevf-3064", "published-1797"]')
      given+=(--set stage.published.params.hidden=64 --set stage.published_question_only.params.hidden=64 --set stage.variants.params.hidden=64)
      ;;
    published) ;;
    *)
      printf 'no stand-ins are known for `%s`\n' "$1" >&2
      return 1
      ;;
  esac
}

studies=("$@")
if [ $# = 0 ]; then
  for file in "$here"/pipelines/*.toml; do studies+=("$(basename "$file" .toml)"); done
fi
for study in "${studies[@]}"; do
  printf '%s: ' "$study"
  given=()
  given "$study"
  if [ "$study" = published ]; then
    printf '\n'
    "$here/scripts/rehearse-published.sh" "$pipe" "$data" "$shared/goldens"
  else
    python3 "$here/scripts/reliability.py" "$pipe" reproduce --study "$here/pipelines/$study.toml" "${given[@]}"
  fi
done
