#!/bin/sh
# Measures full-size architectures on this machine's NVIDIA GPU beside PyTorch on the same card, in f32 and in bf16:
# images (or texts) per second of a forward pass, of the gradient of pixels, of a training step, and the share of the
# card's peak that they come to.
#
#   benches/gpu.sh                                   every architecture
#   benches/gpu.sh --models vit-b-16 --batch 64      one of them
#   benches/gpu.sh --help                            what else can be chosen
#
# Needs cargo, the CUDA toolkit (nvcc) and Python 3; PyTorch and the models beside it are installed from PyPI into an
# environment below the target folder, unless `--python` names an interpreter that has them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../target}
cargo build --release --quiet --manifest-path "$here/../Cargo.toml" --package pipe-models --features cuda \
    --example full_size
measure() {
    python3 "$here/models/bench.py" --program "$target/release/examples/full_size" \
        --environment "$target/bench-models" --device cuda:0 --passes 12 "$@"
}
case " $* " in
*" --help "* | *" -h "* | *" --precision "*)
    measure "$@"
    ;;
*)
    measure --precision f32 "$@"
    measure --precision bf16 --modes forward input "$@"
    ;;
esac
