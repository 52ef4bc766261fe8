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

# What no golden gives: a tokeniser of CLIP's form for few words, a ResNet of OpenAI's for that many, and models of images alone.
cat >standins.toml <<TOML
[pipeline]
name = "standins"
format = 1

[stage.pairs]
kind = "ingest.roco"
inputs = { source = "file:$data/rocov2" }
params = { allow_partial = true }

[stage.words]
kind = "tokenizer"
inputs = { text = "pairs.captions" }
params = { vocab_size = 600 }

[stage.clip]
kind = "checkpoint"
inputs = { tokenizer = "words.tokenizer" }
params = { init = "random", architecture = "clip-rn50", config = { image = { res_net = { trunk = { width = 8, blocks = [1, 1, 1, 1], image = 64 }, pool_heads = 4 } }, text = { width = 64, hidden = 128, layers = 2, heads = 1, positions = 24, vocabulary = 602 }, projection = 32 } }

[stage.images]
kind = "checkpoint"
matrix = { of = [
    { id = "vit_b16", architecture = "vit-b-16", config = { width = 64, hidden = 128, layers = 2, heads = 1, image = 32, patch = 8 } },
    { id = "resnet50", architecture = "resnet50", config = { width = 8, blocks = [1, 1, 1, 1], image = 64 } },
] }
params = { init = "random", architecture = "\${of.architecture}", config = "\${of.config}" }
TOML
"$pipe" run standins.toml --quiet --store store --results standins
drawn=$work/standins/standins
# The goldens' tables of words are shorter than their vocabulary.
for words in 120 110 100; do
  mkdir "bert-$words"
  head -n "$words" "$models/bert-wordpiece-tiny/vocab.txt" >"bert-$words/vocab.txt"
done

small=(
  --var "models=[
    { id = 'clip_vit_b16', inputs = { source = 'file:$models/hf-clip-tiny', tokenizer = 'file:$drawn/words/tokenizer' }, params = {} },
    { id = 'biomed_clip', inputs = { source = 'file:$models/biomedclip-tiny', tokenizer = 'file:$work/bert-120' }, params = { config = { vision = { heads = 6 }, text = { num_attention_heads = 4 } } } },
    { id = 'clip_rn50', inputs = { source = 'file:$drawn/clip/checkpoint' }, params = {} },
    { id = 'pmc_clip', inputs = { source = 'file:$models/pmc-clip-tiny.pt', tokenizer = 'file:$work/bert-110' }, params = { config = { pool_heads = 4, context = 13, text = { num_attention_heads = 4 } } } },
    { id = 'ct_clip', inputs = { source = 'file:$models/ct-clip-tiny.pt', tokenizer = 'file:$work/bert-100' }, params = { config = { adaptation = 'ct-2d', vision = { slices = 6 }, text = { num_attention_heads = 3 } } } },
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
