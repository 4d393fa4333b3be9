# Every target sets up what it needs, and again only when what is installed or compiled changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SOURCES := sr_core components pipelines serving subpixel charts tests

.PHONY: all demo test lint format images bench e2e constraints clean help
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt setup.py sr_core/models/winograd.cpp
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed; found $$($(PYTHON) --version). Try: make PYTHON=python3.11 ..."; exit 1; }
	@echo "setting up $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: $(READY)  ## simulated farmland, from download to report: artifacts/demo/report.html
	@$(BIN)/subpixel demo --out artifacts/demo

test: $(READY)  ## every test that needs no containers
	@$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not e2e"

lint: $(READY)  ## ruff and mypy --strict
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy

format: $(READY)  ## let ruff rewrite the sources
	@$(BIN)/ruff check --fix -q $(SOURCES)
	@$(BIN)/ruff format -q $(SOURCES)

images: $(READY)  ## a container image a stage, and their sizes; needs Docker
	@$(BIN)/python -m components.images

bench: $(READY)  ## speed against the published network, measured in one run: docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks docs/benchmarks.md

e2e: $(READY)  ## the examples, a run in S3, every image and both graphs in containers (starts Docker where none answers)
	@$(BIN)/python -m pytest -q -m e2e --durations=0

constraints:  ## resolve pyproject.toml afresh and write constraints.txt
	@rm -rf build/resolve && $(PYTHON) -m venv build/resolve
	@build/resolve/bin/python -m pip install -qq --disable-pip-version-check 'torch==2.13.0' -e '.[all,dev]'
	@{ sed -n '/^#/p' constraints.txt; build/resolve/bin/python -m pip freeze --exclude-editable | sed 's/^torch==.*/torch==2.13.0/'; } > build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/resolve

clean:  ## remove what make made
	@rm -rf $(VENV) artifacts build .pytest_cache .mypy_cache .ruff_cache *.egg-info
