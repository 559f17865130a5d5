#!/usr/bin/env bash
# N devices over the hosts of HOSTFILE: all hosts are examined first, and the run begins if all is well.
# A host that is lost later is left out, and the run goes on from its newest checkpoint with the rest.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

hostfile=${HOSTFILE:-hostfiles/2node} n=${N:-8}
source ./launch.sh  # defines find_python
python=$(find_python "")
run=("$n" --hostfile "$hostfile" --save-step 20 "$@")
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} "$python" -P -m train.cli check "${run[@]}"
./launch.sh "${run[@]}"
