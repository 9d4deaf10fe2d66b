# `make demo` and `make test` set up everything they need: what pip cannot install comes with
# apt (see .ci/system), the rest goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
# A worker a processor; a file's tests stay together, for what they share.
PARALLEL := -n logical --dist loadfile

.PHONY: demo test lint typecheck pytest slow docs results clean help
.DEFAULT_GOAL := help

help:
	@echo 'make demo       walk the whole path: codec, Verilog, simulation, bitstream'
	@echo 'make test       lint, type check and tests'
	@echo 'make lint       ruff alone        make typecheck  mypy alone'
	@echo 'make pytest     tests alone       make slow       the long tests, too'
	@echo 'make docs       the documentation as a site, in build/site'
	@echo 'make results    the tables of README and notes, from the reports kept here'
	@echo 'make clean      remove .venv and build'

demo: $(VENV)/.light
	$(BIN)/lichen demo -o build/demo

test: lint typecheck pytest

lint: $(VENV)/.full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.full
	$(BIN)/mypy -p lichen

pytest: $(VENV)/.full
	$(BIN)/pytest $(PARALLEL)

slow: $(VENV)/.full
	$(BIN)/pytest $(PARALLEL) -m 'slow or not slow'

docs: $(VENV)/.full
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

results: $(VENV)/.full
	$(BIN)/python benchmarks/results.py

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.python: .ci/system
	PYTHON=$(PYTHON) .ci/system
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

# Enough to generate, simulate, build, encode and decode.
$(VENV)/.light: $(VENV)/.python pyproject.toml
	$(PIP) -e .
	@touch $@

# Also what trains, quantizes and tests; torch comes with it.
$(VENV)/.full: $(VENV)/.python pyproject.toml
	$(PIP) -e '.[quant,dev]'
	@touch $@ $(VENV)/.light
