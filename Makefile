# Run `make` for the list. Everything lives in .venv; a second run finds it there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
# Two processes. A file stays in one, so that what its tests share is made once; files in their order, for the longest
# of those with few tests would come last.
PROCESSES := --numprocesses 2 --dist loadfile --no-loadscope-reorder
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs clean

help: ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.installed ## install, distill the bundled images, score the result beside random real images
	$(BIN)/d4m-fast distill --ipc 10 --out $(DEMO)
	$(BIN)/d4m-fast evaluate $(DEMO) --width 16
	@echo "look at $(DEMO)/preview.png; the images are in $(DEMO)/images, how each was made in $(DEMO)/manifest.jsonl"

test: $(VENV)/.installed-dev ## install and run the tests
	PYTHONUTF8=1 $(BIN)/python -m pytest $(PROCESSES)

lint: $(VENV)/.installed-dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## mypy, strict
	$(BIN)/mypy

# Without --quiet, which hides the warnings from --strict, too. The theme's own notice is no matter of the pages.
docs: $(VENV)/.installed-dev ## build the site of docs/ into site/; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove the environment, the demo's run and the site
	rm -rf $(VENV) $(DEMO) site

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "d4m-fast needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[cpu]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[cpu,rtx,dev,docs,notebook]'
	@touch $@ $(VENV)/.installed
