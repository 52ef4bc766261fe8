#!/usr/bin/env bash
# The unsafe kernels of a CPU (models/src/ops/panels.rs and product.rs) with their tests, under AddressSanitizer: a read or
# write beside what was allocated, or of what was freed, ends them. Miri cannot run them: it knows no AVX-512. They stand in a
# crate of their own here, since what the room depends on would take a quarter of an hour to compile once more.
# Needs a nightly toolchain.   usage: check-kernels.sh [FILTER of tests]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
toolchain=${PIPE_NIGHTLY:-nightly}
host=$(rustc +"$toolchain" -vV | sed -n 's/^host: //p')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/src/ops"
ln -s "$here/models/src/random.rs" "$work/src/random.rs"
ln -s "$here/models/src/ops/panels.rs" "$here/models/src/ops/panels" "$here/models/src/ops/product.rs" "$work/src/ops/"
echo 'mod ops; mod random;' >"$work/src/lib.rs"
echo 'mod panels; mod product;' >"$work/src/ops/mod.rs"
{
  printf '[package]\nname = "kernels"\nversion = "0.0.0"\nedition = "2024"\n\n[dependencies]\n'
  sed -n '/^\(blake3\|gemm\|half\|libm\|pulp\|rayon\) = /p' "$here/Cargo.toml"
  printf '\n[profile.release]\ndebug-assertions = true\n'
} >"$work/Cargo.toml"
cp "$here/Cargo.lock" "$work/Cargo.lock"

# With a target of its own, programs that run while compiling are not instrumented.
export RUSTFLAGS="-Zsanitizer=address -Adead_code" ASAN_OPTIONS=detect_leaks=0
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$here/target}/sanitized
cargo +"$toolchain" test --quiet --release --target "$host" --manifest-path "$work/Cargo.toml" --lib "$@"
