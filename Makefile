# Every target makes the environment that it needs in .venv, once. `make help` lists the targets.
VENV   ?= .venv
PYTHON ?= python3
# The tests make many tiny tensors: one thread per process is faster than several, and processes share the cores.
TEST_ENV = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
USER_STAMP := $(VENV)/.installed
DEV_STAMP  := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test lint format parity bench tree clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## ?/  make \1\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "svi needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(USER_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing svi into $(VENV): about a minute, 1.5 GB of disk'
	@$(PIP) -e .
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing svi and the tools of its developers into $(VENV): about a minute, 1.6 GB of disk'
	@$(PIP) -e '.[dev]'
	@touch $@ $(USER_STAMP)

demo: $(USER_STAMP)  ## make the bundled story with the built-in model, plain and with error recycling, and show both
	@rm -rf runs/demo runs/demo-plain
	$(BIN)/svi generate --out runs/demo-plain
	$(BIN)/svi generate --preset shot --lora shot --out runs/demo
	$(BIN)/svi show runs/demo-plain --sheet runs/demo/contact-sheet.png --rows 8 --columns 3 --beside runs/demo
	@echo 'Plain image to video:   runs/demo-plain/video.mp4'
	@echo 'With error recycling:   runs/demo/video.mp4'
	@echo 'Both, side by side:     runs/demo/contact-sheet.png'
	@echo 'Go on with it:          $(BIN)/svi extend runs/demo --clips 5'

test: $(DEV_STAMP)  ## run the tests
	$(TEST_ENV) $(BIN)/python -m pytest -n auto -q

lint: $(DEV_STAMP)  ## check style, types and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV_STAMP)  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

parity: $(DEV_STAMP)  ## compare conditions, latents and frames with the published code's on a tiny Wan 2.1
	$(TEST_ENV) $(BIN)/python -m svi.parity tests/data/parity/wan21-i2v-tiny

bench: $(DEV_STAMP)  ## measure memory and speed, and write docs/benchmarks.md
	$(BIN)/python benchmarks/endless.py
	$(BIN)/python benchmarks/against_diffusers.py

tree: $(DEV_STAMP)  ## rewrite the list of files in README.md
	$(BIN)/python tools/readme_tree.py

clean:  ## remove the environment, caches and runs/
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
