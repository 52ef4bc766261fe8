#!/usr/bin/env bash
# Faults of a cluster, one after the other, on a Slurm of this machine's own: dead drivers, workers, nodes and controllers, a
# controller that forgets, refused submissions, cancelled jobs, the end of time, too little memory, what is never to be had, a stopped
# driver, two drivers, and a remote cache on an S3 server that is damaged and goes away; then the thesis pipeline beside a local run.
# Needs root, Debian's slurm-wlm and munge, and a Python with `moto[server]` (PIPE_PYTHON); takes about an hour.
# `cargo test` has the short form.
# usage: cluster-campaign.sh [PART...]      parts are the functions below; all of them without one
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(command -v "${PIPE_PYTHON:-python3}")
"$python" -c 'import moto, boto3' || { echo "$python has no moto[server]; PIPE_PYTHON names one that has" >&2; exit 2; }
work=$(mktemp -d)
built=$(cd "$here" && cargo test --quiet --release -p pipe-engine --test cluster --no-run --message-format=json |
  sed -n 's/.*"executable":"\([^"]*cluster-[^"]*\)".*/\1/p' | tail -1)
# What another build replaces meanwhile is not this campaign's.
program=$work/program pipe=$work/pipe
cp "$built" "$program"
(cd "$here" && cargo build --quiet --release)
cp "${CARGO_TARGET_DIR:-$here/target}/release/pipe" "$pipe"
export SLURM_CONF=$work/slurm/slurm.conf PIPE_MARKS XDG_CACHE_HOME=$work/cache PIPE_SLURM_PORT=28817
s3=
trap '[ -z "$s3" ] || kill "$s3"; "$here/engine/tests/cluster/slurm-down.sh" "$work/slurm"; rm -rf "$work"' EXIT

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
[stage.story]
kind = "story"
inputs = { rows = "sum" }
[stage.trained]
kind = "steps"
params = { count = $4, millis = 100, text = "a" }
resources = { cpu = 1 ${5:+, $5} }
TOML
  cd "$1"
  PIPE_MARKS=$1/marks
}
pipe() { "$program" "$1" study.toml "${@:2}"; }
run() { pipe run --quiet "$@"; }
die() { echo "$*" >&2; exit 1; }
check() { # [MOST]: what came to its end did so once, but for MOST actions that were killed on the way, and gave what a local run gives
  local often
  often=$(find marks -type f -size +2c | wc -l)
  [ "$often" -le "${1:-0}" ] || die "$often actions came to their ends more than once"
  # Here the time is that of the action, which nobody continues.
  env -u PIPE_MARKS -u PIPE_REMOTE "$program" run study.toml --executor local --quiet --store local-store --results local \
    --set stage.trained.resources.time=3600
  diff -r -x .published.json results local
}
up() { # [SECONDS that ended jobs are remembered]
  "$here/engine/tests/cluster/slurm-down.sh" "$work/slurm"
  PIPE_SLURM_MINJOBAGE=${1:-300} "$here/engine/tests/cluster/slurm-up.sh" "$work/slurm"
}
running() { squeue -h -r -t RUNNING -o %A | head -1; } # a job that runs
until_some() { # COMMAND...: what it prints, as soon as it prints something
  local said
  for ((i = 0; i < 2400; i++)); do
    said=$("$@" 2>/dev/null || true)
    [ -z "$said" ] || { echo "$said"; return; }
    sleep 0.1
  done
  die "in vain: $*"
}

drivers() { # The driver dies twenty times.
  up
  study "$work/drivers" 150 200 400
  for ((i = 0; i < 20; i++)); do
    run & driver=$!
    sleep "$((RANDOM % 4 + 1)).$((RANDOM % 10))"
    kill -9 $driver 2>/dev/null || true
    wait $driver 2>/dev/null || true
  done
  run
  check
}

workers() { # Five workers die in the middle of their work.
  up
  study "$work/workers" 60 300 300
  run & driver=$!
  for ((i = 0; i < 5; i++)); do
    sleep 2
    id=$(until_some running)
    kill -9 "$(until_some sh -c "sed 's/.*\"pid\":\([0-9]*\).*/\1/' .pipe/batches/*/workers/${id}_*.json")" || true
  done
  wait $driver
  check 5
}

node() { # A node dies in the middle of its work, and comes back.
  up
  study "$work/node" 120 400 300
  run & driver=$!
  sleep 6
  kill -9 "$(cat "$work/slurm/slurmd.b.pid")"
  sleep 45
  slurmd -N b
  wait $driver
  check
}

controller() { # The controller dies within a second after a submission.
  up
  study "$work/controller" 40 300 200
  run & driver=$!
  until ls .pipe/batches/*/job.json >/dev/null 2>&1; do sleep 0.05; done
  kill -9 "$(cat "$work/slurm/slurmctld.pid")"
  sleep 20
  slurmctld
  wait $driver
  check
}

refused() { # sbatch refuses for every reason that passes, and once its answer is lost; with a driver, and without one.
  up
  mkdir "$work/wrapper"
  cat >"$work/wrapper/sbatch" <<SH
#!/bin/bash
echo "\$*" >>$work/wrapper/calls
case \$(wc -l <$work/wrapper/calls) in
  2) says='Unable to contact slurm controller (connect failure)' ;;
  4) $(command -v sbatch) "\$@" >/dev/null && says='Socket timed out on send/recv operation' ;;
  6) says="Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)" ;;
  8) says='the dog ate it' ;;
  *) case "\$*" in *--array=0-0%*) ;; *--array*) [ -e $work/wrapper/halved ] || { touch $work/wrapper/halved; says='Invalid job array specification'; } ;; esac ;;
esac
[ -n "\$says" ] || exec $(command -v sbatch) "\$@"
echo "sbatch: error: Batch job submission failed: \$says" >&2
exit 1
SH
  chmod +x "$work/wrapper/sbatch"
  study "$work/refused" 60 200 100
  PATH=$work/wrapper:$PATH run
  [ -e "$work/wrapper/halved" ] || die "no array was refused for its size"
  check
  rm "$work/wrapper/calls" "$work/wrapper/halved"
  study "$work/refused-detached" 60 200 100
  PATH=$work/wrapper:$PATH run --detach
  until_some sh -c 'ls -d results/t/story' >/dev/null
  until_some sh -c 'ls -d results/t/trained' >/dev/null
  while [ -n "$(squeue -h)" ]; do sleep 0.2; done
  [ "$(wc -l <"$work/wrapper/calls")" -ge 8 ] || die "too few submissions"
  check
}

cancelled() { # A person cancels a training, and then everything.
  up
  study "$work/cancelled" 30 200 300
  run trained & driver=$!
  until_some running >/dev/null
  sleep 2
  scancel "$(running)"
  code=0
  wait $driver || code=$?
  [ $code = 1 ] || die "a cancelled job ends with $code"
  run & driver=$!
  until_some running >/dev/null
  sleep 3
  pipe cancel last
  wait $driver && die "a cancelled run ends well"
  [ -z "$(squeue -h)" ] || die "jobs are left"
  run
  check
}

limit() { # A training that takes three times the time of its task.
  up
  study "$work/limit" 1 0 1800 'time = "1min"'
  run
  resumed=$(grep -h '"ev":"resume"' .pipe/runs/*/events.jsonl | wc -l)
  [ "$resumed" -ge 2 ] || die "resumed $resumed times"
  check
}

memory() { # An action takes more memory than its stage said: Slurm kills it, and with half as much on top it comes to its end.
  export PIPE_SLURM_SAMPLER=1
  up
  unset PIPE_SLURM_SAMPLER
  study "$work/memory" 5 50 5
  cat >>study.toml <<'TOML'
[stage.large]
kind = "steps"
params = { count = 50, millis = 100, text = "m", megabytes = 500 }
resources = { cpu = 1, mem = "400MiB" }
TOML
  run
  grep -h 'exceeded memory limit' .pipe/batches/*/logs/*.err >/dev/null || die "Slurm killed nobody"
  asked=$(grep -oh 'mem=[0-9]*M' .pipe/batches/*/intent.json | sort | paste -sd ' ')
  [ "$asked" = 'mem=400M mem=600M' ] || die "memory was asked for so: $asked"
  check
}

never() { # No such partition, and more cores than any node has: told at their lines within 90 s; the rest goes on.
  up
  study "$work/never" 5 100 5
  cat >>study.toml <<'TOML'
[stage.nowhere]
kind = "steps"
params = { text = "n" }
resources = { partition = "nosuch" }
[stage.large]
kind = "steps"
params = { text = "l" }
resources = { cpu = 64 }
TOML
  code=0 since=$SECONDS
  pipe run >told 2>&1 || code=$?
  [ $code = 1 ] && [ $((SECONDS - since)) -le 90 ] || die "code $code after $((SECONDS - since)) s"
  for asked in 'partition = "nosuch"' 'cpu = 64'; do
    grep -q "study.toml:$(grep -n "$asked" study.toml | cut -d: -f1):" told || die "no word of the line of $asked: $(cat told)"
  done
  [ -d results/t/sum ] && [ -d results/t/trained ] || die "the rest did not go on"
}

asleep() { # A driver that was stopped for longer than the controller remembers jobs.
  up 10
  study "$work/asleep" 20 200 100
  run & driver=$!
  sleep 3
  kill -STOP $driver
  sleep 60
  kill -CONT $driver
  wait $driver
  check
}

two() { # Two drivers on one store.
  up
  study "$work/two" 60 200 100
  run & first=$!
  run & second=$!
  wait $first
  wait $second
  check
}

remote() { # What jobs made is taken from S3 after the store is gone, and nothing is submitted; then all that befalls a server.
  up
  study "$work/remote" 40 50 20
  port=$((PIPE_SLURM_PORT + 9))
  "$python" -m moto.server -H 127.0.0.1 -p $port >moto.log 2>&1 & s3=$!
  until_some sh -c "curl -sfX PUT http://127.0.0.1:$port/lab && echo there" >/dev/null
  cloud=(PIPE_REMOTE=s3://lab/t PIPE_REMOTE_MODE=read-write AWS_ENDPOINT_URL="http://127.0.0.1:$port" AWS_ACCESS_KEY_ID=test
    AWS_SECRET_ACCESS_KEY=test AWS_REGION=us-east-1)
  env "${cloud[@]}" "$program" run study.toml --quiet
  rm -rf .pipe results
  env "${cloud[@]}" "$program" run study.toml --quiet
  [ ! -e .pipe/batches ] || die "something was submitted"
  kill $s3
  s3=
  check
  "$python" "$here/tests/readers/use_s3.py" "$pipe"
}

thesis() { # The thesis pipeline, record for record.
  "$here/engine/tests/cluster/slurm-down.sh" "$work/slurm"
  "$here/scripts/cluster-thesis.sh" "$pipe"
}

[ $# -gt 0 ] || set -- drivers workers node controller refused cancelled limit memory never asleep two remote thesis
for part; do
  began=$SECONDS
  "$part"
  printf '%-12s ok, %s s\n' "$part" $((SECONDS - began))
done
