#!/usr/bin/env bash
# Makes in FOLDER what stands in for published models where no golden does: a tokeniser of CLIP's form for few words (`words`), a
# ResNet of OpenAI's for that many (`clip`), models of images alone (`images`), and word lists of BERT's form that are as long
# as the goldens' vocabularies (`bert-100`, `bert-110`, `bert-120`).
#
#     scripts/stand-ins.sh PIPE DATA GOLDENS FOLDER
#
# DATA and GOLDENS: the samples of data sets and the small models that the tests use.
set -euo pipefail
pipe=$(realpath "$1")
data=$(realpath "$2")
models=$(realpath "$3")/models
mkdir -p "$4"
folder=$(realpath "$4")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/standins.toml" <<TOML
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
"$pipe" run "$work/standins.toml" --quiet --store "$work/store" --results "$work/results"
made=$work/results/standins
cp -r "$made/pairs" "$made/images" "$folder"
cp -r "$made/words/tokenizer" "$folder/words"
cp -r "$made/clip/checkpoint" "$folder/clip"
# The goldens' tables of words are shorter than their vocabulary.
for words in 120 110 100; do
  mkdir -p "$folder/bert-$words"
  head -n "$words" "$models/bert-wordpiece-tiny/vocab.txt" >"$folder/bert-$words/vocab.txt"
done
