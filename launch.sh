#!/usr/bin/env bash
# ./launch.sh [N] [--hostfile F] [arguments of train/main.py]      ./launch.sh --help
# Finds Python (the active environment if it has deepspeed, else .venv, made once, with torch from
# ANYRANK_TORCH_INDEX if that is set, and Liger's kernels where a GPU is) and starts train.launch with
# it. Sourced, it only defines find_python and make_environment.

root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")

# has PYTHON MODULE...: is PYTHON new enough, and can it find every module (importing none)?
# -P, which Pythons before 3.11 do not know: a json.py of the working folder is not for us.
has() {
  "$1" -P -c 'import sys, importlib.util as u
sys.exit(sys.version_info < (3, 11) or any(map(lambda m: u.find_spec(m) is None, sys.argv[1:])))' \
    "${@:2}" 2> /dev/null
}

# find_python EXTRA MODULE...: print a Python that has the modules; make .venv if there is none.
find_python() {
  local extra=$1 python; shift
  for python in python python3; do
    if has "$python" deepspeed "$@"; then type -P "$python"; return; fi
  done
  make_environment "$extra" >&2 && echo "$root/.venv/bin/python"
}

# make_environment EXTRA: .venv with this package, its dependencies and EXTRA's ("" for none).
# The mark is written last, so that a half-made .venv is never taken for a good one. (Each step says
# `|| exit` itself: errexit does not hold in a function that is called in a condition.)
make_environment() (
  extra=$1 mark=$root/.venv/anyrank-installed${1:+-$1} want=$(cksum < "$root/pyproject.toml")
  # Of pip's words: what takes long, a line each.
  big='s/^ *\(Downloading [^ ]* ([0-9.]* [MG]B)\)$/launch.sh: \1/p; s/^Installing collected .*/launch.sh: unpacking/p'
  set -o pipefail
  exec 9<> "$root/pyproject.toml" || exit  # for writing as well: NFS locks nothing else exclusively
  flock -n 9 || { echo "launch.sh: waiting for another process that is making .venv"
    flock 9 || exit; }
  [ "$(cat "$mark" 2> /dev/null)" != "$want" ] || exit 0
  if ! compgen -G "$root/.venv/anyrank-installed*" > /dev/null; then
    python=
    for name in python3 python python3.13 python3.12 python3.11; do
      if has "$name" venv ensurepip; then python=$name; break; fi
    done
    [ -n "$python" ] || {
      echo "launch.sh: no Python of at least 3.11 with the venv module was found:" \
        "install one (on Debian: apt-get install python3-venv) and run this again" >&2
      exit 2
    }
    kind=$(PYTHONPATH=$root "$python" -P -c 'import os
from train.hosts import devices; print(devices.find(os.environ).kind)' 2> /dev/null)
    [ "$kind" != amd ] || [ -n "${ANYRANK_TORCH_INDEX:-}" ] || {
      echo "launch.sh: this machine has AMD GPUs, and the usual torch is built for NVIDIA's: set" \
        "ANYRANK_TORCH_INDEX to the index of torch for your ROCm (pytorch.org names it), or" \
        "activate an environment that has such a torch and deepspeed, and run this again" >&2
      exit 2
    }
    [ -n "$extra" ] || case $kind in nvidia | amd) extra=kernels ;; esac
    echo "launch.sh: making .venv with $("$python" --version) (once; some minutes)"
    "$python" -P -m venv --clear "$root/.venv" || exit
    [ -z "${ANYRANK_TORCH_INDEX:-}" ] || {
      torch=$(sed -n 's/^ *"\(torch[<>=].*\)",$/\1/p' "$root/pyproject.toml")
      echo "launch.sh: installing ${torch:=torch} from $ANYRANK_TORCH_INDEX into .venv"
      "$root/.venv/bin/python" -P -m pip install --disable-pip-version-check \
        --index-url "$ANYRANK_TORCH_INDEX" "$torch" | sed -un "$big" || exit
    }
  fi
  echo "launch.sh: installing anyrank${extra:+ with what its $extra needs} into .venv"
  # --use-pep517: deepspeed has a setup.py alone, of which older pips warn at length.
  "$root/.venv/bin/python" -P -m pip install --disable-pip-version-check --use-pep517 \
    --editable "$root${extra:+[$extra]}" | sed -un "$big" || exit
  echo "$want" > "$mark"
)

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  python=$(find_python "") || exit
  PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -P -m train.launch "$@"
fi
