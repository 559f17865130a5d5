#!/usr/bin/env bash
# A real Slurm on one machine: a controller, and nodes s1..sN with 4 pretended GPUs each.
#   slurm.sh up N | down          (root, slurm-wlm, munge)
# Everything lies in LAB/slurm; set SLURM_CONF=LAB/slurm/slurm.conf to use it. A node's name does not
# resolve, as all run on this machine: their address is in the configuration.
set -euo pipefail
lab=${LAB:?} dir=$lab/slurm
export SLURM_CONF=$dir/slurm.conf

up() {
  mkdir -p "$dir"/{state,spool,dev,munge}
  head -c 1024 /dev/urandom > "$dir/munge/key"
  chmod 700 "$dir/munge" && chmod 400 "$dir/munge/key"
  /usr/sbin/munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
    --pid-file="$dir/munged.pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" \
    2> /dev/null
  for g in 0 1 2 3; do [ -e "$dir/dev/gpu$g" ] || mknod "$dir/dev/gpu$g" c 1 3; done
  configure "$1"
  /usr/sbin/slurmctld
  for i in $(seq 1 "$1"); do mkdir -p "$dir/spool/s$i"; /usr/sbin/slurmd -N "s$i"; done
  for _ in $(seq 60); do
    [ "$(sinfo -h -t idle -o %D 2> /dev/null)" = "$1" ] && return
    sleep 0.5
  done
  echo "slurm did not come up: see $dir/*.log" >&2
  exit 1
}

configure() {
  local host i g; host=$(hostname -s)
  {
    cat << CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
SlurmctldPort=16817
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait=10
SlurmdParameters=config_overrides
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    for i in $(seq 1 "$1"); do
      echo "NodeName=s$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((17000 + i)) CPUs=4" \
        "RealMemory=4000 Gres=gpu:4 State=UNKNOWN"
    done
  } > "$dir/slurm.conf"
  for i in $(seq 1 "$1"); do
    for g in 0 1 2 3; do echo "NodeName=s$i Name=gpu File=$dir/dev/gpu$g"; done
  done > "$dir/gres.conf"
}

down() {
  timeout 10 scancel --user="$(id -un)" 2> /dev/null || true
  for _ in $(seq 100); do [ -n "$(squeue -h 2> /dev/null)" ] || break; sleep 0.1; done
  for file in "$dir"/s*.pid "$dir"/slurmctld.pid "$dir"/munged.pid; do
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2> /dev/null || true
    for _ in $(seq 100); do kill -0 "$pid" 2> /dev/null || break; sleep 0.1; done
  done
  rm -rf "$dir"
}

case ${1:-} in
  up) up "${2:?how many}" ;;
  down) down ;;
  *) sed -n '2,5p' "$0"; exit 2 ;;
esac
