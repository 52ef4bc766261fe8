#!/usr/bin/env bash
# Executes `pipelines/published.toml` whole, every stage and the report, with small stand-ins for what it would fetch: models of
# random weights in the published containers, and samples of the data. Then once more, which has to execute nothing, and once
# more with `--reproduce`, in another time zone and on another number of cores, which has to give the same results to the bit.
# What is learned means nothing: this shows that the study runs. Takes some minutes of two cores and no network.
#
#     scripts/rehearse-published.sh PIPE [DATA [GOLDENS [RESULTS]]]
#
# DATA holds the samples of data sets and GOLDENS the small models that the tests use; by default `data` and `goldens` of the folder
# `shared` beside the repository. Results go where RESULTS says, and else are removed at the end.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pipe=$(realpath "$1")
data=$(realpath "${2:-$here/../shared/data}")
models=$(realpath "${3:-$here/../shared/goldens}")/models
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
results=$(realpath -m "${4:-$work/results}")
cp "$here/pipelines/published.toml" "$work"
cd "$work"
export XDG_CACHE_HOME=$work/cache

"$here/scripts/stand-ins.sh" "$pipe" "$data" "$(dirname "$models")" "$work/drawn"
drawn=$work/drawn

small=(
  --var "models=[
    { id = 'clip_vit_b16', inputs = { source = 'file:$models/hf-clip-tiny', tokenizer = 'file:$drawn/words' }, params = {} },
    { id = 'biomed_clip', inputs = { source = 'file:$models/biomedclip-tiny', tokenizer = 'file:$drawn/bert-120' }, params = { config = { vision = { heads = 6 }, text = { num_attention_heads = 4 } } } },
    { id = 'clip_rn50', inputs = { source = 'file:$drawn/clip' }, params = {} },
    { id = 'pmc_clip', inputs = { source = 'file:$models/pmc-clip-tiny.pt', tokenizer = 'file:$drawn/bert-110' }, params = { config = { pool_heads = 4, context = 13, text = { num_attention_heads = 4 } } } },
    { id = 'ct_clip', inputs = { source = 'file:$models/ct-clip-tiny.pt', tokenizer = 'file:$drawn/bert-100' }, params = { config = { adaptation = 'ct-2d', vision = { slices = 6 }, text = { num_attention_heads = 3 } } } },
  ]"
  --var "unimodal=[
    { id = 'vit_b16', inputs = { source = 'file:$drawn/images/checkpoint/of=vit_b16' } },
    { id = 'resnet50', inputs = { source = 'file:$drawn/images/checkpoint/of=resnet50' } },
  ]"
  --var "sets=[
    { id = 'breastmnist', file = 'breastmnist.npz', prompts = { malignant = ['a malignant mass', 'a mass'], 'normal, benign' = ['no mass', 'a benign mass'] } },
    { id = 'retinamnist', file = 'fixture-retinamnist.npz', prompts = { 0 = ['no retinopathy'], 1 = ['mild retinopathy'], 2 = ['moderate retinopathy'], 3 = ['severe retinopathy'], 4 = ['proliferative retinopathy'] } },
  ]"
  --var "captions=[
    { id = 'roco', kind = 'ingest.roco', source = 'file:$data/rocov2', params = { allow_partial = true } },
    { id = 'pmc_15m', kind = 'ingest.pmc', source = 'file:$data/fixture-pmc-15m', params = { dataset = 'pmc-15m', max_rejects = 10, val = 0.2, test = 0.4, seed = 2 } },
  ]"
  --var "zenodo=file:$data/medmnist/" --var "vqa_rad=file:$data/vqa-rad" --var "slake=file:$data/fixture-slake"
  --set stage.data.params.allow_partial=true --set stage.vqa_rad.params.allow_partial=true --set stage.slake.params.allow_partial=true
  # Two seeds, so that there is a spread; of everything else as little as will do.
  --var "seeds=[1, 2]" --var "rates=[{ id = '1e-4', lr = 1e-4 }]" --var epochs=1 --var retrieval_epochs=1 --var vqa_epochs=1 --var qcr_epochs=1
  --var explained=4 --var pool=8 --set stage.retrieval_tuned.params.batch=4 --set stage.scored.params.steps=5
  --set stage.adapted.params.epochs=1 --set stage.adapted.params.batch=8
  --set stage.answering.params.hidden=64 --set stage.question_only.params.hidden=64
  --set 'stage.answering[head=cross_modal].params.epochs=1' --set 'stage.question_only[head=cross_modal].params.epochs=1'
  --set stage.answers_explained.params.limit=3
)
run() { "$pipe" run published.toml "${small[@]}" --store store --results "$results" "$@"; }
# What the last event of a run says under a name: a number.
counted() { tail -n 1 | sed 's/.*"'"$1"'":\([0-9]*\).*/\1/'; }

began=$SECONDS
first=$(run --json)
printf 'whole: %s nodes executed, %s s\n' "$(counted executed <<<"$first")" $((SECONDS - began))
[ -s "$results/published/report/page/index.html" ] || { echo "there is no report" >&2; exit 1; }

again=$(run --json | counted executed)
[ "$again" = 0 ] || { echo "the same once more executed $again nodes" >&2; exit 1; }

began=$SECONDS
TZ=Pacific/Kiritimati run --quiet --reproduce --jobs 1
printf 'again: equal, %s s\n' $((SECONDS - began))
