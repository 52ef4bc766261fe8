#!/usr/bin/env bash
# Do the libraries of the published models load what `pipe` writes? Runs the stage `checkpoint` on small
# models, loads its outputs with transformers and open_clip from PyPI, and compares their embeddings with
# those of the original files. Then the same of models that `pipe` has trained, whole and by adapters that
# were merged, and of a BERT: their embeddings by transformers are those that `pipe` stores.
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
  "$cache/torch/bin/pip" install --quiet --disable-pip-version-check torch transformers open_clip_torch safetensors numpy pyarrow pillow
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

# trained MODE: a CLIP that was trained, with the captions and images that it embeds.
trained() {
  cat >"$work/$1.toml" <<TOML
[pipeline]
name = "$1"
format = 1

[stage.pairs]
kind = "ingest.phantom"
params = { domain = "medical", weights = "chest", task = "finding-chest", seed = 5, size = 48, train = 32, val = 0, test = 16 }

[stage.tokens]
kind = "tokenizer"
inputs = { text = "pairs.captions" }
params = { vocab_size = 600 }

[stage.model]
kind = "checkpoint"
inputs = { tokenizer = "tokens.tokenizer" }
params = { init = "random", preprocessing = "hugging_face" }

[stage.tuned]
kind = "finetune.classify"
inputs = { images = "pairs.images", labels = "pairs.labels", checkpoint = "model.checkpoint" }
params = { mode = "$1", epochs = 3, batch = 8, lr = 1e-2 }

[stage.embedded]
kind = "embed"
inputs = { images = "pairs.images", captions = "pairs.captions", checkpoint = "tuned.checkpoint" }
params = { splits = ["test"] }
TOML
  cargo run --quiet --release -- run "$work/$1.toml" --store "$work/store" --results "$work/results"
  HF_HUB_OFFLINE=1 "$python" scripts/verify_published.py clip "$work/results/$1/tuned/checkpoint" "$work/results/$1"
}
trained full
trained lora

cat >"$work/bert.toml" <<TOML
[pipeline]
name = "bert"
format = 1

[stage.pairs]
kind = "ingest.phantom"
params = { domain = "medical", seed = 5, size = 48, train = 0, val = 0, test = 16 }

[stage.model]
kind = "checkpoint"
inputs = { tokenizer = "file:$goldens/models/bert-wordpiece-tiny" }
params = { init = "random", architecture = "pubmed-bert", config = { hidden_size = 32, num_hidden_layers = 3, num_attention_heads = 4, intermediate_size = 64, max_position_embeddings = 128 } }

[stage.embedded]
kind = "embed"
inputs = { captions = "pairs.captions", checkpoint = "model.checkpoint" }
params = { modality = "text", splits = ["test"] }
TOML
cargo run --quiet --release -- run "$work/bert.toml" --store "$work/store" --results "$work/results"
HF_HUB_OFFLINE=1 "$python" scripts/verify_published.py bert "$work/results/bert/model/checkpoint" "$work/results/bert"
