#!/usr/bin/env bash
# A Slurm job on NODES nodes with GPUS devices on each (unset: CPU ranks, TASKS on each node).
# Before its time limit, or when preempted, the job saves, is queued again, and goes on.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

if [ -n "${GPUS:-}" ]; then
  devices="--gpus-per-node=$GPUS"
else
  devices="--ntasks-per-node=${TASKS:-1}"
fi
sbatch -N "${NODES:-2}" "$devices" slurm/train.sbatch "$@"
