# Needs make and a Python 3.11 to 3.13 with its venv module; everything else is installed into .venv.

PYTHON ?= python3
VENV ?= .venv
BACKENDS ?= tensorflow jax torch
JOBS ?= 3
# The CPU build of TensorFlow is the smaller one. Where it has no wheel (macOS): TENSORFLOW=tensorflow.
TENSORFLOW ?= tensorflow-cpu

BIN := $(VENV)/bin
CONSTRAINTS := $(if $(filter .venv-min,$(VENV)),constraints-min.txt,constraints.txt)
# Builds kustom with the hatchling of the constraints, not with whatever is newest on the day.
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --quiet --no-build-isolation --constraint $(CONSTRAINTS)
INSTALL_FAILED := { echo "The install failed, see above. Every package has wheels for Python 3.11 to 3.13 on 64-bit Linux;\
	elsewhere pip may want a C compiler."; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help train test test-all test-nightly lint suite bench wheel-test clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'ARGS="..." goes to the recipe, to pytest or to the benchmarks. BACKENDS, JOBS, PYTHON, VENV choose what runs where.'

train: $(VENV)/.train ## run the main job on JAX; ARGS="--help" shows its options
	KERAS_BACKEND=$${KERAS_BACKEND:-jax} $(BIN)/python recipes/regression.py $(ARGS)

test: lint ## lint, then the suite once a backend; BACKENDS=jax runs one
	@$(MAKE) --no-print-directory suite

test-all: lint ## as test, with the slow tests, the oldest Keras and the wheel
	@$(MAKE) --no-print-directory suite SELECT='-m ""'
	@$(MAKE) --no-print-directory suite VENV=.venv-min
	@$(MAKE) --no-print-directory wheel-test

test-nightly: ## the suite on keras-nightly: to be looked at, not a gate
	@$(MAKE) --no-print-directory .venv-nightly/.all VENV=.venv-nightly
	.venv-nightly/bin/python -m pip uninstall --quiet --quiet --yes keras keras-nightly
	.venv-nightly/bin/python -m pip install --quiet --quiet --pre --constraint constraints.txt keras-nightly
	@$(MAKE) --no-print-directory suite VENV=.venv-nightly

lint: $(VENV)/.all ## ruff and pyright
	@failed=; for tool in "ruff check ." "ruff format --check ." "pyright --pythonpath $(BIN)/python"; do \
		echo "==== $$tool"; $(BIN)/$$tool || failed="$$failed [$$tool]"; done; \
		if [ -n "$$failed" ]; then echo "lint failed:$$failed"; exit 1; fi

# A failing suite stops no other. Three on two cores: none of them keeps a core busy all the time, and threads of torch that
# wait for work must not spin meanwhile. An old make, which cannot keep two outputs apart, runs one after the other.
suite: $(VENV)/.all ## the suite alone, once a backend
	@echo "suites: $(BACKENDS); $(JOBS) at a time, each shown whole when it ends"
	@$(MAKE) --no-print-directory --keep-going $(BACKENDS:%=suite-%) \
		$(if $(filter output-sync,$(.FEATURES)),--output-sync=target --jobs=$(JOBS))

suite-%:
	@echo "==== $* in $(VENV)"
	@KERAS_BACKEND=$* OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(SELECT) $(ARGS)

bench: $(VENV)/.bench ## every script in benchmarks/
	@for script in benchmarks/*.py; do echo "==== $$script"; $(BIN)/python "$$script" $(ARGS) || exit 1; done

wheel-test: $(VENV)/.all ## build the wheel and use it in an empty environment
	$(BIN)/python scripts/wheel_test.py

clean: ## remove the environments and what tests and runs have left
	rm -rf .venv .venv-* build dist runs .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 to 3.13, \
	or name one: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "$(PYTHON) is \
	$$($(PYTHON) --version 2>&1), 3.11 to 3.13 is needed. Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make environments, its module venv \
	or ensurepip is missing. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps: an install is repeated when what it asks for has changed. `make test` completes what `make train` began.
$(VENV)/.train: pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	@echo "installing JAX and what the recipes need into $(VENV)"
	@$(INSTALL) hatchling editables || $(INSTALL_FAILED)
	@$(INSTALL) --editable ".[jax,recipes]" || $(INSTALL_FAILED)
	@touch $@

$(VENV)/.all: pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	@echo "installing all backends and the tools into $(VENV): about three gigabytes"
	@$(INSTALL) hatchling editables || $(INSTALL_FAILED)
	@$(INSTALL) --editable ".[jax,torch,recipes,test,lint]" $(TENSORFLOW) || $(INSTALL_FAILED)
	@touch $(VENV)/.train $@

$(VENV)/.bench: $(VENV)/.all
	@echo "installing what the benchmarks compare with into $(VENV)"
	@$(INSTALL) --editable ".[benchmarks]" || $(INSTALL_FAILED)
	@touch $@
