#!/bin/sh
# Measures what is claimed of the program, and prints it as tables.
#
#   benches/run.sh engine              the engine beside DVC and Snakemake, on the same shapes
#   benches/run.sh engine --no-peers   the engine alone
#   benches/run.sh engine --help       sizes and places
#   benches/run.sh scale               a study over 15 million rows of keys: planned, changed, planned again
#   benches/run.sh scale --rows 100000 fewer rows
#   benches/run.sh slurm               an action on a Slurm cluster beside Snakemake's plugin for it (root)
#   benches/run.sh models              full-size architectures beside PyTorch (open_clip, timm, transformers)
#   benches/run.sh models --help       which ones, and how often
#   benches/run.sh attribution         methods of attribution beside Captum, on full-size architectures
#   benches/run.sh attribution --help  which ones, and how often
#   benches/run.sh metrics             metrics of explanations beside Quantus, at equal threads
#   benches/run.sh metrics --help      which ones, and how often
#   benches/run.sh ingest              ingests of five layouts beside pyarrow, pandas, `datasets` and nibabel
#   benches/run.sh ingest --growth     what their memory grows by with each row
#   benches/run.sh ingest --help       which ones, how many rows, and where
#   benches/run.sh statistics          linear probes and intervals beside scikit-learn, at equal threads
#   benches/run.sh statistics --help   which ones, and how often
#   benches/run.sh vqa                 training steps of MEVF and QCR beside PyTorch, at equal threads
#   benches/run.sh vqa --help          which ones, and how often
#
# Ratios are medians of pairs that were measured in turn, with their range; those of models, attribution, metrics,
# ingest, statistics and vqa are also kept in `bench.json` below the target folder, as a list of {work, ratio, low, high, target}.
# `benches/gpu.sh` measures the same architectures on an NVIDIA GPU.
#
# Needs cargo and Python 3; the peers are installed from PyPI into an environment below the target folder.
# These are measurements for people to read, never tests: nothing fails because a machine is busy.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../target}
case ${1:-} in
engine)
    shift
    cargo build --release --quiet --manifest-path "$here/../Cargo.toml" --package pipe-engine --example shapes
    exec python3 "$here/engine/bench.py" --pipe "$target/release/examples/shapes" \
        --environment "$target/bench-peers" "$@"
    ;;
scale)
    shift
    cargo build --release --quiet --manifest-path "$here/../Cargo.toml" --package pipe-engine --example scale
    exec python3 "$here/engine/scale.py" --program "$target/release/examples/scale" "$@"
    ;;
slurm)
    shift
    cargo build --release --quiet --manifest-path "$here/../Cargo.toml" --package pipe-engine --example shapes
    exec python3 "$here/engine/slurm.py" --program "$target/release/examples/shapes" \
        --environment "$target/bench-slurm" --cluster "$here/../engine/tests/cluster" "$@"
    ;;
models)
    shift
    cargo build --release --quiet --manifest-path "$here/../Cargo.toml" --package pipe-models --example full_size
    exec python3 "$here/models/bench.py" --program "$target/release/examples/full_size" \
        --environment "$target/bench-models" --json "$target/bench.json" "$@"
    ;;
attribution)
    shift
    cargo build --release --quiet --manifest-path "$here/../Cargo.toml" --package pipe-attribution --example explain
    exec python3 "$here/attribution/bench.py" --program "$target/release/examples/explain" \
        --environment "$target/bench-attribution" --json "$target/bench.json" "$@"
    ;;
metrics)
    shift
    cargo build --release --quiet --manifest-path "$here/../Cargo.toml" --package pipe-attribution --example metrics
    exec python3 "$here/metrics/bench.py" --program "$target/release/examples/metrics" \
        --environment "$target/bench-metrics" --json "$target/bench.json" "$@"
    ;;
ingest)
    shift
    cargo build --release --quiet --manifest-path "$here/../Cargo.toml" --bin pipe
    exec python3 "$here/ingest/bench.py" --pipe "$target/release/pipe" --environment "$target/bench-ingest" \
        --json "$target/bench.json" "$@"
    ;;
statistics)
    shift
    cargo build --release --quiet --manifest-path "$here/../Cargo.toml" --package pipe-stages --example statistics
    exec python3 "$here/statistics/bench.py" --program "$target/release/examples/statistics" \
        --environment "$target/bench-statistics" --json "$target/bench.json" "$@"
    ;;
vqa)
    shift
    cargo build --release --quiet --manifest-path "$here/../Cargo.toml" --package pipe-models --example answering
    exec python3 "$here/vqa/bench.py" --program "$target/release/examples/answering" \
        --environment "$target/bench-vqa" --json "$target/bench.json" "$@"
    ;;
*)
    sed -n '2,27s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
