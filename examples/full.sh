#!/usr/bin/env bash
# Full fine-tuning on N processes (default 2), with a run folder of its own: without a model and a
# dataset the embedded preset is trained. The same command again goes on from its newest checkpoint.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

./launch.sh "${N:-2}" --run-dir runs/example-full --save-step 50 "$@"
