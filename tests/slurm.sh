#!/usr/bin/env bash
# A Slurm of one node for test_slurm.py: without systemd, cgroups or a database, with two GPUs that are none.
#   slurm.sh start FOLDER     installs Debian's packages where they are missing; wants root and a machine to throw away
#   slurm.sh stop FOLDER
set -euo pipefail
folder=$(realpath -m "$2")
conf=$folder/slurm.conf
export SLURM_CONF=$conf

start() {
  if ! command -v slurmctld slurmd sbatch munged >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge
  fi
  mkdir -p "$folder/state" "$folder/spool"
  host=$(hostname -s)
  cat >"$conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES PriorityTier=1 MaxTime=INFINITE State=UP GraceTime=10
PartitionName=high Nodes=$host PriorityTier=10 MaxTime=INFINITE State=UP PreemptMode=OFF
CONF
  echo "NodeName=$host Name=gpu File=/dev/tty[0-1]" >"$folder/gres.conf"
  if ! pgrep -x munged >/dev/null; then
    mkdir -p /run/munge && chown munge: /run/munge
    [ -e /etc/munge/munge.key ] || runuser -u munge -- mungekey
    runuser -u munge -- munged
    touch "$folder/munged"
  fi
  slurmctld
  slurmd
  for _ in $(seq 60); do
    if [ "$(sinfo --noheader --format %T --partition low 2>/dev/null)" = idle ]; then
      return
    fi
    sleep 1
  done
  tail "$folder"/*.log >&2
  echo "error: the node is not idle after a minute" >&2
  return 1
}

stop() {
  timeout 10 scancel --partition low,high || true # else their processes would live on
  sleep 2
  for daemon in slurmd slurmctld; do
    [ ! -e "$folder/$daemon.pid" ] || kill "$(cat "$folder/$daemon.pid")" || true
  done
  [ ! -e "$folder/munged" ] || munged --stop || true
}

"$1"
