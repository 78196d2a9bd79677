# gpunn. `make` lists the targets; a fresh machine needs only Python >= 3.11 and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SEED ?= 0

# The CUDA release that the NVIDIA driver supports: 12, 13, … or nothing without a driver.
DRIVER := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p' | head -n 1)
ifeq ($(DRIVER),)
  GPU_EXTRA :=
  TEST_EXTRA := cuda12
else ifeq ($(DRIVER),12)
  GPU_EXTRA := cuda12
  TEST_EXTRA := cuda12
else
  GPU_EXTRA := cuda13
  TEST_EXTRA := cuda13
endif
comma := ,
TRAIN_EXTRAS := examples$(if $(GPU_EXTRA),$(comma)$(GPU_EXTRA))
TEST_EXTRAS := test,$(TEST_EXTRA)

.PHONY: help train gallery test test-oracle test-browser test-distributed gpu bench bench-emulator lint typecheck docs docs-tables clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

train: $(VENV)/.train  ## set up, then train a network on real handwritten digits
	$(BIN)/gpunn train digits --seed $(SEED)

gallery: $(VENV)/.gallery  ## set up, then run all examples with three seeds and rebuild examples/README.md
	$(BIN)/python examples/gallery.py

# A process for each core: BLAS threads of their own would only get into each other's way.
test: $(VENV)/.test  ## set up, then run all tests that need no PyTorch (GPU tests where there is one)
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --ignore tests/oracle --ignore tests/browser \
	  --ignore tests/distributed \
	  --emulator-coverage-minimum 95

test-oracle: $(VENV)/.oracle  ## set up with PyTorch, then compare with it
	$(BIN)/python -m pytest tests/oracle

test-browser: $(VENV)/.browser  ## set up a browser, then look at the reports in it
	$(BIN)/python -m pytest tests/browser

test-distributed: $(VENV)/.distributed  ## set up MPI, then train with 2 and 4 processes
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest tests/distributed

gpu:  ## with a GPU: all GPU tests and benchmarks, one result file; installs nothing (PYTHON=...)
	$(PYTHON) benchmarks/gpu.py

bench-emulator: $(VENV)/.test  ## time the emulator
	$(BIN)/python benchmarks/emulator.py

bench: $(VENV)/.test  ## time every kernel against its peers
	$(BIN)/gpunn bench all

lint: $(VENV)/.test  ## style and errors that a reader of the code would see
	$(BIN)/python -m pip install --quiet "ruff>=0.8"
	$(BIN)/ruff check gpunn kernels tests benchmarks examples docs

typecheck: $(VENV)/.types  ## mypy: strict on what users call, see pyproject.toml
	$(BIN)/python -m mypy

# A warning is an error: a link into nothing, a page in no list, a docstring that cannot be read.
docs: $(VENV)/.docs  ## build the documentation: docs/_build/html/index.html
	$(BIN)/python -m sphinx -b html -E -a -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

docs-tables: $(VENV)/.test  ## rewrite the tables in docs from the committed result files
	$(BIN)/python -m gpunn.bench.report
	$(BIN)/python -m gpunn.cli.page docs/cli.md

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .hypothesis .ruff_cache build dist docs/_build

# ---- virtual environment: one, filled step by step; a stamp file marks each step done --------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "gpunn needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# uv is several times faster; pip does the same.
define install
	@echo "installing gpunn[$(1)] into $(VENV)"
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -e ".[$(1)]" 2>$(VENV)/uv.log \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(1)]"
endef

$(VENV)/.train: pyproject.toml | $(BIN)/python
	$(call install,$(TRAIN_EXTRAS))
	@touch $@

$(VENV)/.gallery: pyproject.toml | $(BIN)/python
	$(call install,gallery$(if $(GPU_EXTRA),$(comma)$(GPU_EXTRA)))
	@touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(call install,docs)
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(call install,$(TEST_EXTRAS))
	@touch $@

$(VENV)/.types: $(VENV)/.test
	$(call install,types)
	@touch $@

# pip, not uv: only pip looks where the CPU build of PyTorch may lie on a test machine.
$(VENV)/.oracle: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[oracle]"
	@touch $@

$(VENV)/.distributed: $(VENV)/.test
	$(call install,distributed)
	@touch $@

# Chromium and its driver are packages of the system; only root may install them.
$(VENV)/.browser: $(VENV)/.test
	$(call install,browser)
	@command -v chromedriver >/dev/null && command -v chromium >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	    && apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; } \
	  || { echo "the tests of pages need chromium and chromedriver; as root: apt-get install chromium chromium-driver"; \
	    exit 1; }
	@touch $@
