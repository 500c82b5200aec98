# The two commands of a newcomer: `make demo` (the whole road, a report at the end) and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PYTHONSAFEPATH = 1

.PHONY: help setup check test slow demo edge image-check gpu clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

setup: $(VENV)/.installed  ## install everything into .venv

# torch, torchvision and open_clip stand in one command: apart, pip moves torch to another build.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23.2"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,export,report,pack,sign,tensorrt-rtx,dev]'
	touch $@

check: setup  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check  ## check, then every test that is not slow
	$(BIN)/pytest -n 2 --dist loadfile

slow: setup  ## the tests that take longer than a minute
	$(BIN)/pytest -n 2 --dist loadfile -m slow

demo: setup  ## export, quantize and judge the embedded model; the report is out/demo/report.html
	$(BIN)/clipq demo -o out/demo

EDGE_PYTHON ?= python3.10
edge: setup  ## the torch-free part on Python 3.10 (what JetPack 6 brings)
	EDGE_PYTHON=$(EDGE_PYTHON) bash tests/edge/run.sh

image-check: setup  ## build the container image without a Docker engine and run it (root; minutes)
	CLIPQ=$(BIN)/clipq bash tests/image/run.sh

GPU ?= --shared ../shared
gpu: setup  ## measure everything on the GPU, in ten minutes; without one rehearse it and end with 4 (make: error 2)
	$(BIN)/python benchmarks/gpu --rehearse $(GPU)

clean:  ## remove what was made, not .venv
	rm -rf out dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
