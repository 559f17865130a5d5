#!/usr/bin/env bash
# An adapter on a frozen model, from the hub or from folders and files that MODEL and DATA name; N GPUs.
# The run's model/ folder is then an adapter for peft; anyrank export --merge-lora writes a whole model.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

./launch.sh "${N:-1}" \
  --model-name-or-path "${MODEL:-mistralai/Mistral-7B-v0.3}" \
  --dataset-name-or-path "${DATA:-tatsu-lab/alpaca}" \
  --use-lora --lora-r 16 --lr 2e-4 "$@"
