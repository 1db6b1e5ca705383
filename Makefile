# Every target sets up what it needs: a virtual environment in .venv, versions from constraints.txt.
# PYTHON may name the interpreter to build it with (3.10 or later).
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test lint format docs bench build clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "gradsurgery needs Python 3.10 or later, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(READY)  ## train a VAE on a real table, plain sum against impartial gradients; about three minutes
	$(BIN)/gradsurgery-vae compare randhie

test: $(READY) lint  ## lint, then all tests
	$(BIN)/python -m pytest --numprocesses 2

lint: $(READY)  ## ruff and the type checker in strict mode
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy gradsurgery integrations

format: $(READY)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY)  ## the pages, under build/docs, warnings as errors; start with build/docs/index.html
	$(BIN)/python docs/generate_guarantees.py
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs -d build/doctrees . build/docs

bench: $(READY)  ## measure; writes JSON under benchmarks/results
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/weights.py
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/ranks.py
	$(BIN)/python benchmarks/seeds.py
	$(BIN)/python benchmarks/monitor.py
	$(BIN)/python benchmarks/claims.py

build: $(READY)  ## a wheel under dist
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove what the targets made
	rm -rf .venv build dist runs *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
