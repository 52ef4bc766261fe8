#!/usr/bin/env bash
# Faults of a cluster, one after the other, on a Slurm of this machine's own: dead drivers, nodes and controllers, the end of
# time, a stopped driver, a controller that forgets; then the thesis pipeline beside a local run. Takes about 40 minutes, and root;
# `cargo test` has the short form.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=$(cd "$here" && cargo test --quiet --release -p pipe-engine --test cluster --no-run --message-format=json |
  sed -n 's/.*"executable":"\([^"]*cluster-[^"]*\)".*/\1/p' | tail -1)
work=$(mktemp -d)
export SLURM_CONF=$work/slurm/slurm.conf PIPE_MARKS XDG_CACHE_HOME=$work/cache PIPE_SLURM_PORT=28817
trap '"$here/tests/cluster/slurm-down.sh" "$work/slurm"; rm -rf "$work"' EXIT

study() { # FOLDER PARTS MILLISECONDS STEPS [RESOURCES of the training]
  mkdir -p "$1/marks"
  cat >"$1/study.toml" <<TOML
[pipeline]
name = "t"
format = 1
[executor]
use = "slurm"
[executor.slurm]
poll = "2s"
submit_rate = "20/s"
task_target = "4s"
export = ["PIPE_MARKS"]
[stage.numbers]
kind = "numbers"
params = { count = $2 }
[stage.doubled]
kind = "double"
inputs = { rows = "numbers" }
params = { millis = $3 }
[stage.sum]
kind = "total"
inputs = { rows = "doubled" }
[stage.trained]
kind = "steps"
params = { count = $4, millis = 100, text = "a" }
resources = { cpu = 1 ${5:+, $5} }
TOML
  cd "$1"
  PIPE_MARKS=$1/marks
}
pipe() { "$program" "$1" study.toml "${@:2}"; }
run() { pipe run --quiet; }
check() { # what came to its end did so once, and gave what a local run gives
  local often
  often=$(find marks -type f -size +2c)
  [ "${1:-}" = twice-allowed ] || [ -z "$often" ] || { echo "more than once: $often" >&2; exit 1; }
  # Here the time is that of the action, which nobody continues.
  env -u PIPE_MARKS "$program" run study.toml --executor local --quiet --store local-store --results local \
    --set stage.trained.resources.time=3600
  diff -r -x .published.json results local
}
passed() { printf '%-60s ok, %s s\n' "$1" "$SECONDS"; }

"$here/tests/cluster/slurm-up.sh" "$work/slurm"

# 1. The driver dies twenty times.
study "$work/drivers" 150 200 400
for ((i = 0; i < 20; i++)); do
  pipe run --quiet & driver=$!
  sleep "$((RANDOM % 4 + 1)).$((RANDOM % 10))"
  kill -9 $driver 2>/dev/null || true
  wait $driver 2>/dev/null || true
done
run
check
passed "twenty dead drivers"

# 2. A node dies in the middle of its work, and comes back.
study "$work/node" 120 400 300
pipe run --quiet & driver=$!
sleep 6
kill -9 "$(cat "$work/slurm/slurmd.b.pid")"
sleep 45
slurmd -N b
wait $driver
check twice-allowed
passed "a dead node"

# 3. The controller dies within a second after a submission.
study "$work/controller" 40 300 200
pipe run --quiet & driver=$!
until ls .pipe/batches/*/job.json >/dev/null 2>&1; do sleep 0.05; done
kill -9 "$(cat "$work/slurm/slurmctld.pid")"
sleep 20
slurmctld
wait $driver
check twice-allowed
passed "a controller that forgets"

# 4. A training that takes three times the time of its task.
study "$work/time" 1 0 1800 'time = "1min"'
run
resumed=$(grep -h '"ev":"resume"' .pipe/runs/*/events.jsonl | wc -l)
[ "$resumed" -ge 2 ] || { echo "resumed $resumed times" >&2; exit 1; }
check
passed "the end of time, $resumed times"

# 5. A driver that was stopped for longer than the controller remembers jobs.
"$here/tests/cluster/slurm-down.sh" "$work/slurm"
PIPE_SLURM_MINJOBAGE=10 "$here/tests/cluster/slurm-up.sh" "$work/slurm"
study "$work/asleep" 20 200 100
pipe run --quiet & driver=$!
sleep 3
kill -STOP $driver
sleep 60
kill -CONT $driver
wait $driver
check
passed "a driver that slept"

# 6. Two drivers.
study "$work/two" 60 200 100
pipe run --quiet & first=$!
pipe run --quiet & second=$!
wait $first
wait $second
check
passed "two drivers"

# 7. The thesis pipeline, record for record.
"$here/tests/cluster/slurm-down.sh" "$work/slurm"
(cd "$here" && cargo build --quiet --release)
"$here/scripts/cluster-thesis.sh" "${CARGO_TARGET_DIR:-$here/target}/release/pipe"
passed "the thesis equals the local run"
