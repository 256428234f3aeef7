# The targets of the project. `make run` and `make test` work on a fresh checkout of a Debian-like machine with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where `make run` keeps the node: its keys, its configuration and, unless configured otherwise, the embedded store. The same as
# `stnode` uses by itself.
STNODE_HOME ?= $(or $(XDG_DATA_HOME),$(HOME)/.local/share)/stnode
export STNODE_HOME
PYTEST_ARGS ?=
# Tests at once. Most of the long ones wait for processes that they have started.
TEST_JOBS ?= $(shell echo $$(($$(nproc) + 1)))

.PHONY: help run test check soak bench proto fmt
help:
	@echo "make run     start a node (home: $(STNODE_HOME); STNODE_HOME=DIR for another)"
	@echo "make test    install what the tests need and run all of them (PYTEST_ARGS='-m \"not slow\"' for the quick ones)"
	@echo "make check   lint, types, layers"
	@echo "make soak    simulations, fuzzing and properties with a hundred times the examples"
	@echo "make bench   measure; wants a quiet machine"
	@echo "make proto   generate the protobuf code again"
	@echo "make fmt     format and fix what can be fixed"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3-venv is needed: sudo apt-get install python3-venv"; exit 1; }

$(VENV)/.run-installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev-installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.run-installed

# Prints the device ID and the page's address, then runs until Ctrl-C.
run: $(VENV)/.run-installed
	@test -e "$(STNODE_HOME)/config.toml" || $(BIN)/stnode init
	@echo "device ID: $$($(BIN)/stnode id)"
	@exec $(BIN)/stnode run

test: $(VENV)/.dev-installed
	$(BIN)/python -m tests.support.install
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist load --maxschedchunk 1 -m "not soak and not perf" $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m perf tests/perf

check: $(VENV)/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python -m tests.support.architecture

soak: $(VENV)/.dev-installed
	SIM_SEEDS=$${SIM_SEEDS:-20000} FUZZ_FRAMES=$${FUZZ_FRAMES:-100000} $(BIN)/python -m pytest --timeout=0 --hypothesis-profile=soak -m "soak or not soak" tests/sim tests/fuzz tests/property $(PYTEST_ARGS)
	STNODE_KILLS=$${STNODE_KILLS:-100} STNODE_FILES=5000 STNODE_CHANGES=2000 $(BIN)/python -m pytest --timeout=0 -s -m "soak or slow" tests/integration

bench: $(VENV)/.dev-installed
	$(BIN)/python -m bench.transfer --out docs/performance.md
	$(BIN)/python -m bench.index

proto: $(VENV)/.dev-installed
	$(BIN)/python proto/generate.py

fmt: $(VENV)/.dev-installed
	$(BIN)/ruff check --fix-only --exit-zero .
	$(BIN)/ruff format .
