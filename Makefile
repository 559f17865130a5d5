# make setup: .venv with everything, nothing run.    make test: sets up what it needs, runs the suite.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: setup test test-cluster

TOOLS := pytest hypothesis mypy ruff matplotlib tensorboard mistral_common
PYTHON = source ./launch.sh && python=$$(find_python test $(TOOLS))
STRICT := train/errors.py train/arguments.py train/config.py train/cli.py train/planning train/launch train/data

setup:
	@source ./launch.sh && make_environment test

test:
	@$(PYTHON) && $$python -m ruff check . && $$python -m ruff format --check . \
	  && $$python -m mypy $(wildcard $(STRICT)) && $$python -m pytest tests $(PYTEST)

# Several hosts and a Slurm on this machine, brought up and taken down; needs root.
test-cluster:
	@tests/cluster/install && $(PYTHON) && $$python -m pytest tests/cluster $(PYTEST)
