#!/usr/bin/env bash
# Do the libraries of the published models load what `pipe` writes? Runs the stage `checkpoint` on small
# models, loads its outputs with transformers and open_clip from PyPI, and compares their embeddings with
# those of the original files.
#
#     PIPE_GOLDENS=path/to/goldens scripts/check-export.sh
#
# Takes a Rust toolchain and Python; installs PyTorch (a large download) into a virtual environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

goldens=$(realpath "${PIPE_GOLDENS:-../shared/goldens}")
if [ ! -d "$goldens/models" ]; then
  echo "SKIPPED: there is no folder $goldens/models; PIPE_GOLDENS names another" >&2
  exit 0
fi
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pipe-build
python=${PYTHON:-$cache/torch/bin/python}
if [ ! -x "$python" ]; then
  python3 -m venv "$cache/torch"
  "$cache/torch/bin/pip" install --quiet --disable-pip-version-check torch transformers open_clip_torch safetensors numpy
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/export.toml" <<TOML
[pipeline]
name = "export"
format = 1

[stage.model]
kind = "checkpoint"
matrix = { of = [
    { id = "hf-clip-tiny", source = "file:$goldens/models/hf-clip-tiny", config = {} },
    { id = "openai-vit-tiny", source = "file:$goldens/models/openai-vit-tiny.pt", config = {} },
    { id = "openai-rn-tiny", source = "file:$goldens/models/openai-rn-tiny.pt", config = {} },
    # Its heads are told by no published file: real ones have 64 values each.
    { id = "biomedclip-tiny", source = "file:$goldens/models/biomedclip-tiny", config = { vision = { heads = 6 }, text = { num_attention_heads = 4 } } },
] }
inputs = { source = "\${of.source}" }
params = { config = "\${of.config}" }
TOML
cargo run --quiet --release -- run "$work/export.toml" --store "$work/store" --results "$work/results"
HF_HUB_OFFLINE=1 "$python" scripts/check_export.py "$goldens/models" "$work/results/export/model/checkpoint"
