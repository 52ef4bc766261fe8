#!/usr/bin/env bash
# Are embeddings of the published models those of their own libraries? Downloads the checkpoints, embeds
# drawn images and captions with `pipe` and with the Python reference, and compares.
#
#     scripts/verify-published.sh                       # all of the list below (needs a network)
#     scripts/verify-published.sh clip=path/to/folder   # a folder that is there already
#
# Takes a Rust toolchain and Python; installs PyTorch (a large download) into a virtual environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cache=${XDG_CACHE_HOME:-$HOME/.cache}/pipe-build
python=${PYTHON:-$cache/torch/bin/python}
if [ ! -x "$python" ]; then
  python3 -m venv "$cache/torch"
  "$cache/torch/bin/pip" install --quiet --disable-pip-version-check torch transformers open_clip_torch safetensors numpy pyarrow pillow
fi

# name=repository: the folders are fetched into the cache of the hub.
models=("$@")
if ((${#models[@]} == 0)); then
  models=(
    clip=openai/clip-vit-base-patch32
    clip=openai/clip-vit-base-patch16
    open_clip=microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224
    clip=flaviagiammarino/pubmed-clip-vit-base-patch32
  )
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for model in "${models[@]}"; do
  library=${model%%=*}
  source=${model#*=}
  if [ -d "$source" ]; then
    folder=$(realpath "$source")
  else
    folder=$("$python" -c 'import sys, huggingface_hub; print(huggingface_hub.snapshot_download(sys.argv[1]))' "$source")
  fi
  cat >"$work/published.toml" <<TOML
[pipeline]
name = "published"
format = 1

[stage.pairs]
kind = "ingest.phantom"
params = { domain = "medical", seed = 5, size = 128, train = 0, val = 0, test = 16 }

[stage.model]
kind = "checkpoint"
inputs = { source = "file:$folder" }

[stage.embedded]
kind = "embed"
inputs = { images = "pairs.images", captions = "pairs.captions", checkpoint = "model" }
params = { splits = ["test"], normalise = false }
TOML
  cargo run --quiet --release -- run "$work/published.toml" --store "$work/store" --results "$work/results"
  "$python" scripts/verify_published.py "$library" "$folder" "$work/results/published"
done
