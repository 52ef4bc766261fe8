#!/usr/bin/env bash
# Stops the cluster that slurm-up.sh made in FOLDER, and removes the folder.   usage: slurm-down.sh FOLDER
set -uo pipefail
folder=$(realpath -m "$1")
export SLURM_CONF=$folder/slurm.conf
[ -f "$SLURM_CONF" ] || exit 0
# A step outlives its slurmd, so jobs go first.
scancel --user=root 2>/dev/null && sleep 1
for daemon in slurmd.a slurmd.b slurmctld munged; do
  pid=$(cat "$folder/$daemon.pid" 2>/dev/null) || continue
  kill "$pid" 2>/dev/null || continue
  for _ in $(seq 50); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null
done
rm -rf "$folder"
