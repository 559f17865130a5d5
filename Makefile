# make setup: .venv with everything, nothing run.  make check: the inner loop, under a minute.
# make test: sets up what it needs, runs the whole suite; make coverage: the same, measured.
# make test-cluster: several hosts and Slurm.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: setup check lint test coverage test-cluster test-all

TOOLS := pytest xdist pytest_cov hypothesis mypy ruff matplotlib tensorboard mistral_common
PYTHON = source ./launch.sh && python=$$(find_python test $(TOOLS))
LINT = $$python -m ruff check . && $$python -m ruff format --check . && $$python -m mypy train
# Of the lines and branches that the tests' own processes run, in percent.
FLOOR := 75
# A file's tests share what they have made, so a file stays with one worker; more than cores, since many wait.
WORKERS := -n 3 --dist loadfile --no-loadscope-reorder
# Fast tests wait for nothing, and each worker imports all of their files.
FAST_WORKERS := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

setup:
	@source ./launch.sh && make_environment test

check:
	@$(PYTHON) && $(LINT) && $$python -m pytest tests -m fast -q $(FAST_WORKERS) $(PYTEST)

test:
	@$(PYTHON) && $(LINT) && $$python -m pytest tests --ignore=tests/cluster $(WORKERS) $(PYTEST)

# The same, traced, which makes what is not in torch three times as long.
coverage: override PYTEST += --cov --cov-report= --cov-fail-under=$(FLOOR)
coverage: test

# Several hosts and a Slurm on this machine, brought up and taken down; needs root.
test-cluster:
	@tests/cluster/install && $(PYTHON) && $$python -m pytest tests/cluster $(PYTEST)

# Every rank count, stage and pair, 32 ranks, and real runs hurt at random: an hour or two.
test-all: test
	@tests/cluster/install && $(PYTHON) && $$python -m pytest tests -m "" --exhaustive $(PYTEST) \
	  && $$python -m tests.chaos --kills 100 --damaged 40
