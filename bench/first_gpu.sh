#!/usr/bin/env bash
# bench/first_gpu.sh [--cpu] [--json FILE]: the first ten minutes on a GPU, in one command.
# Asks in order what no machine without a GPU can answer; --cpu asks the same of small sizes.
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." || exit
exec "${PYTHON:-python}" -m bench.first_gpu "$@"
