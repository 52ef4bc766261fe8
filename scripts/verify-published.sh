#!/usr/bin/env bash
# Are embeddings of the published models those of their own libraries? Downloads the checkpoints, embeds
# drawn images and captions with `pipe` and with the Python reference, and compares.
#
#     scripts/verify-published.sh                       # all of the list below (needs a network)
#     scripts/verify-published.sh clip=path/to/folder   # a folder that is there already
#
# A folder of `openai` holds one of OpenAI's files and the `tokenizer.json` of a CLIP, one of `pmc_clip` PubMedBERT's
# `vocab.txt` and the authors' `checkpoint.pt` or the three files that it was split into, one of `ct_clip` CXR-BERT's
# `vocab.txt` and one of the authors' `.pt`. CT-CLIP and what was tuned from it are gated and compared by their authors'
# code, so they are in the list only where CT_CLIP names a clone of https://github.com/ibrahimethemhamamci/CT-CLIP, and
# HF_TOKEN an account that accepted its conditions; the classifier of CT-LiPro is compared too. Of towers alone (`bert`, `timm`, `torchvision`) that side is compared.
# CONFIG, a table in TOML, says of a folder what its files do not, as small models of the same layouts need it.
#
# Takes a Rust toolchain and Python; installs PyTorch (a large download) into a virtual environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cache=${XDG_CACHE_HOME:-$HOME/.cache}/pipe-build
python=${PYTHON:-$cache/torch/bin/python}
if [ ! -x "$python" ]; then
  python3 -m venv "$cache/torch"
  "$cache/torch/bin/pip" install --quiet --disable-pip-version-check torch torchvision timm transformers open_clip_torch safetensors numpy pyarrow pillow
fi

# name=repository: the folders are fetched into the cache of the hub.
models=("$@")
if ((${#models[@]} == 0)); then
  models=(
    clip=openai/clip-vit-base-patch32
    clip=openai/clip-vit-base-patch16
    open_clip=microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224
    clip=openai/clip-vit-large-patch14
    clip=flaviagiammarino/pubmed-clip-vit-base-patch32
    clip=vinid/plip
    openai=RN50
    pmc_clip=axiong/pmc_oa_beta:checkpoint.pt
    "pmc_clip=axiong/pmc_oa:image_encoder(resnet50).pth,text_encoder.pth,text_projection_layer.pth"
    bert=microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext
    timm=timm/vit_base_patch16_224.augreg2_in21k_ft_in1k
    torchvision=resnet50-0676ba61
  )
  if [ -n "${CT_CLIP:-}" ]; then
    for file in CT-CLIP_v2.pt CT_VocabFine_v2.pt CT_LiPro_v2.pt; do
      models+=("ct_clip=ibrahimhamamci/CT-RATE:models/CT-CLIP-Related/$file")
    done
  fi
fi

# fetch REPOSITORY TYPE FILE...: the files of a repository of the hub, in one folder.
fetch() {
  "$python" - "$@" <<'PYTHON'
import pathlib, shutil, sys, tempfile
import huggingface_hub
folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
for one in sys.argv[2:]:
    kind, repository, file = one.split(":")
    path = huggingface_hub.hf_hub_download(repository, file, repo_type=kind)
    shutil.copy(path, folder / pathlib.Path(file).name)
print(folder)
PYTHON
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for model in "${models[@]}"; do
  library=${model%%=*}
  source=${model#*=}
  if [ -d "$source" ]; then
    folder=$(realpath "$source")
  elif [ "$library" = openai ]; then
    folder=$(fetch "$work" model:openai/clip-vit-base-patch32:tokenizer.json model:openai/clip-vit-base-patch32:tokenizer_config.json)
    digest=afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762
    curl -fsSL "https://openaipublic.azureedge.net/clip/models/$digest/$source.pt" -o "$folder/$source.pt"
    echo "$digest  $folder/$source.pt" | sha256sum --check --quiet
  elif [ "$library" = torchvision ]; then
    folder=$(mktemp -d -p "$work")
    curl -fsSL "https://download.pytorch.org/models/$source.pth" -o "$folder/$source.pth"
    # The name ends in the first digits of the digest.
    sha256sum "$folder/$source.pth" | grep -q "^${source##*-}" || { echo "$source.pth is damaged" >&2; exit 1; }
  elif [ "$library" = pmc_clip ] || [ "$library" = ct_clip ]; then
    vocabulary=microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext
    [ "$library" = pmc_clip ] || vocabulary=microsoft/BiomedVLP-CXR-BERT-specialized
    IFS=, read -ra files <<<"${source#*:}"
    folder=$(fetch "$work" "${files[@]/#/dataset:${source%%:*}:}" "model:$vocabulary:vocab.txt")
  else
    folder=$("$python" -c 'import sys, huggingface_hub; print(huggingface_hub.snapshot_download(sys.argv[1]))' "$source")
  fi
  drawn='{ domain = "medical", seed = 5, size = 128, train = 0, val = 0, test = 16 }'
  port=images
  if [ "$library" = ct_clip ]; then
    drawn='{ domain = "volume", seed = 5, size = 128, train = 0, val = 0, test = 2 }'
    port=volumes
  fi
  case $library in
  bert) inputs='captions = "pairs.captions"' modality=text ;;
  timm | torchvision) inputs='images = "pairs.images"' modality=image ;;
  *) inputs="images = \"pairs.$port\", captions = \"pairs.captions\"" modality=both ;;
  esac
  rm -rf "$work/results"
  cat >"$work/published.toml" <<TOML
[pipeline]
name = "published"
format = 1

[stage.pairs]
kind = "ingest.phantom"
params = $drawn

[stage.model]
kind = "checkpoint"
inputs = { source = "file:$folder" }
params = { config = ${CONFIG:-{\}} }

[stage.embedded]
kind = "embed"
inputs = { $inputs, checkpoint = "model" }
params = { splits = ["test"], normalise = false, modality = "$modality" }
TOML
  # The names of tensors stand in the file as they are.
  if [ "$library" = ct_clip ] && grep -q --text classifier.weight "$folder"/*.pt; then
    cat >>"$work/published.toml" <<TOML

[stage.classified]
kind = "evaluate.classify"
inputs = { images = "pairs.volumes", labels = "pairs.labels", checkpoint = "model" }
params = { splits = ["test"] }
TOML
  fi
  cargo run --quiet --release -- run "$work/published.toml" --store "$work/store" --results "$work/results"
  "$python" scripts/verify_published.py "$library" "$folder" "$work/results/published"
done
