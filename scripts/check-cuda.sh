#!/usr/bin/env bash
# Does the program compile with the features `cuda` and `cudnn`? Fetches NVIDIA's compiler and headers from PyPI,
# compiles candle's kernels with them, and type-checks the crate that knows of devices, tests included. Needs no GPU
# and no driver: nothing is linked. What cannot be compiled on this system is said at the end.
#
#     scripts/check-cuda.sh
#
# Takes a Rust toolchain and Python. The compiler is kept in the user's cache for the next time (about 1 GB);
# what is built is removed at the end, unless CARGO_TARGET_DIR names a folder to build in.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# One release of the toolkit: its parts are packages of their own, with versions of their own.
release=13.2
packages=(
  "nvidia-cuda-nvcc==$release.*"    # the compiler driver
  "nvidia-cuda-crt==$release.*"     # what it compiles into every kernel
  "nvidia-nvvm==$release.*"         # its code generator
  "nvidia-cuda-runtime==$release.*" # headers of the runtime
  "nvidia-cuda-cccl==$release.*"    # headers of CUB and Thrust
  nvidia-cublas nvidia-curand       # headers that candle's kernels include
)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pipe-build/cuda-$release
toolkit=$cache/nvidia/cu13
if [ ! -x "$toolkit/bin/nvcc" ]; then
  rm -rf "$cache.partial"
  # Without dependencies: the libraries would come with PyTorch's whole stack.
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$cache.partial" "${packages[@]}"
  # Wheels do not keep the permission to run.
  chmod +x "$cache.partial"/nvidia/cu13/bin/* "$cache.partial"/nvidia/cu13/nvvm/bin/*
  rm -rf "$cache"
  mv "$cache.partial" "$cache"
fi

export CUDA_HOME=$toolkit CUDA_PATH=$toolkit CUDA_ROOT=$toolkit CUDA_TOOLKIT_ROOT_DIR=$toolkit
export PATH="$toolkit/bin:$PATH"
# A100; newer cards run its code too.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
if [ -z "${CARGO_TARGET_DIR:-}" ]; then
  CARGO_TARGET_DIR=$(mktemp -d)
  trap 'rm -rf "$CARGO_TARGET_DIR"' EXIT
fi
export CARGO_TARGET_DIR
nvcc --version | tail -n 2
for feature in cuda cudnn; do
  # The program's feature reaches candle through every crate between.
  if ! cargo tree --quiet --locked --package pipe --features "$feature" --edges features --invert candle-core | grep -q "candle-core feature \"$feature\""; then
    echo "the program's feature \`$feature\` does not reach candle" >&2
    exit 1
  fi
  # All other crates are the same with and without it.
  cargo check --release --locked --package pipe-models --all-targets --features "$feature"
  echo "the feature \`$feature\` compiles"
done
if [ "$(uname)" != Darwin ]; then
  echo "not checked: \`metal\` and \`accelerate\`, which need Apple's frameworks and compile on macOS alone"
fi
echo "not checked: \`mkl\`, which fetches Intel's library as it is built, for x86-64 alone"
