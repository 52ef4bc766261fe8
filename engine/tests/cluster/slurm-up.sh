#!/usr/bin/env bash
# A Slurm cluster of two nodes on this machine alone, as root: munged, slurmctld and two slurmd, told apart by their ports.
# usage: slurm-up.sh FOLDER      afterwards SLURM_CONF=FOLDER/slurm.conf finds it; slurm-down.sh FOLDER stops it
# PIPE_SLURM_PORT: the first of three ports (17817); PIPE_SLURM_MINJOBAGE: seconds that ended jobs are remembered (300);
# PIPE_SLURM_SAMPLER: the memory of jobs is looked at so often, in seconds, and who takes more than he asked for is killed (never).
set -euo pipefail
folder=$(realpath -m "$1")
port=${PIPE_SLURM_PORT:-17817}
host=$(hostname -s)
if [ "$(id -u)" != 0 ]; then echo "slurm-up.sh: slurmd starts jobs as other users, so it needs root" >&2; exit 2; fi
if ! getent hosts "$host" >/dev/null; then echo "slurm-up.sh: the name of this host, $host, is in no /etc/hosts" >&2; exit 2; fi
mkdir -p "$folder"/{state,spool.a,spool.b}
chmod 755 "$folder"

export SLURM_CONF=$folder/slurm.conf
sampler=JobAcctGatherType=jobacct_gather/none
if [ -n "${PIPE_SLURM_SAMPLER:-}" ]; then
  sampler="JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=$PIPE_SLURM_SAMPLER
JobAcctGatherParams=OverMemoryKill"
fi
cat >"$SLURM_CONF" <<CONF
ClusterName=check
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmdLogFile=$folder/slurmd.%n.log
SlurmdSpoolDir=$folder/spool.%n
# Nodes claim what is written here, whatever the machine has.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
${sampler}
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0
DefMemPerCPU=200
MaxArraySize=1001
JobRequeue=1
ReturnToService=2
KillWait=3
MinJobAge=${PIPE_SLURM_MINJOBAGE:-300}
MessageTimeout=10
SlurmctldTimeout=10
SlurmdTimeout=8
NodeName=a NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=2 RealMemory=2000 State=UNKNOWN
NodeName=b NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=both Nodes=a,b Default=YES MaxTime=60 DefaultTime=10 State=UP
CONF
echo 'CgroupPlugin=cgroup/v1' >"$folder/cgroup.conf"

head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 600 "$folder/munge.key"
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
slurmctld -c >/dev/null
slurmd -N a
slurmd -N b
for _ in $(seq 150); do
  if [ "$(sinfo -hN -o %T 2>/dev/null | grep -cx idle)" = 2 ]; then exit 0; fi
  sleep 0.2
done
echo "slurm-up.sh: the nodes did not come up within 30 s; the logs are in $folder" >&2
exit 1
