#!/usr/bin/env bash
# The thesis pipeline on a Slurm of this machine's own equals the local run, record for record and digest for digest.
# Needs root and Debian's slurm-wlm and munge; takes as long as the study twice.
# usage: cluster-thesis.sh PROGRAM [ARGUMENTS of `pipe run`, such as --var pairs=500]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=$(realpath "$1")
shift
work=$(mktemp -d)
export SLURM_CONF=$work/slurm/slurm.conf XDG_CACHE_HOME=$work/cache PIPE_SLURM_PORT=${PIPE_SLURM_PORT:-28917}
trap '"$here/engine/tests/cluster/slurm-down.sh" "$work/slurm"; rm -rf "$work"' EXIT

# The study with short looks at the queue: its actions take seconds here.
mkdir "$work/study"
cp "$here/pipelines/thesis.toml" "$work/study/thesis.toml"
cat >>"$work/study/thesis.toml" <<'TOML'

[executor.slurm]
poll = "2s"
submit_rate = "20/s"
task_target = "1min"
TOML
cd "$work/study"
run() { "$program" run thesis.toml --quiet --executor "$1" --store "$1" --results "$1.results" "${@:2}"; }
# The key and the outputs of every record: of parts too.
records() { (cd "$1/ac" && find . -type f -print0 | sort -z | xargs -0 grep -hE '^"(key|outputs)": '); }

began=$SECONDS
run local "$@"
printf 'local: %s s\n' $((SECONDS - began))
"$here/engine/tests/cluster/slurm-up.sh" "$work/slurm"
began=$SECONDS
run slurm "$@"
printf 'on Slurm: %s s\n' $((SECONDS - began))

diff <(records local) <(records slurm)
diff -r -x .published.json local.results slurm.results
printf '%s records with equal outputs, %s submissions\n' "$(records local | grep -c '^"key"')" "$(find slurm/batches -name job.json | wc -l)"
