# Two commands: `make book` and `make test`. Both make .venv from requirements.lock first.
#
#   PYTHON=python3.12   the interpreter that makes .venv (3.10 to 3.13)
#   LAB_ARGS=…          more options for JupyterLab: make lab LAB_ARGS=--no-browser
#   PIP_ARGS=…          more options for pip, such as another index for CPU builds of torch

PYTHON ?= python3
PIP_ARGS ?=
LAB_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help executed book test browser pdf vllm zip lab lint twice again tidy lock address clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

book: $(STAMP)  ## execute what changed, build the HTML, print its address and the run times
	$(BIN)/python tools/build_book.py

executed: $(STAMP)  ## the first half of make book: execute what changed
	$(BIN)/python tools/book_execute.py

test: lint  ## ruff, mypy and all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

browser: $(STAMP) pdf  ## every page of the built site in Chromium: phone and desk, light and dark, keyboard, search
	BROWSER=required $(BIN)/python -m pytest -n 2 tests/browser

pdf: $(STAMP)  ## the built site as one PDF; needs Chromium
	$(BIN)/python tools/book_pdf.py

vllm: $(STAMP) $(VLLM)/.installed  ## load in vLLM what the command line writes; installs vLLM for CPUs beside .venv (Linux, x86)
	VLLM=required $(BIN)/python -m pytest tests/served

zip: $(STAMP)  ## the built site, and the executed notebooks, each as one file
	$(BIN)/python tools/zip_site.py

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

twice: $(STAMP)  ## execute every notebook again; the numbers must be the same
	$(BIN)/python tools/execute_twice.py

again: $(STAMP)  ## the same for the notebooks whose outputs are not those of tests/book/outputs.json
	$(BIN)/python tools/execute_twice.py --unrecorded

lab: $(STAMP)  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --ServerApp.root_dir=notebooks $(LAB_ARGS)

tidy: $(STAMP)  ## write notebooks in their committed form: no outputs, canonical first cells
	$(BIN)/python tools/tidy_notebooks.py

lock: $(STAMP)  ## compute requirements.lock again from pyproject.toml (asks the package index)
	$(BIN)/python tools/lock.py

address: $(STAMP)  ## set the repository's public address everywhere: make address URL=https://github.com/…
	$(BIN)/python tools/address.py "$(URL)"

clean:  ## remove what was built and executed; .venv stays
	rm -rf _build .cache

# The stamp is written last, so that an interrupted installation starts again. pip would compile with one core; a file
# of another Python's syntax, which some packages hold, is no error.
$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "missing: $(PYTHON). Install Python 3.10 to 3.13, or name one: make PYTHON=python3.12"; exit 2; }
	@command -v git >/dev/null || { echo "missing: git"; exit 2; }
	@$(PYTHON) tools/check_python.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile $(PIP_ARGS) -r requirements.lock
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $(STAMP)

# An environment of its own: vLLM holds other versions of transformers and compressed-tensors than the book.
$(VLLM)/.installed: tests/served/requirements.lock
	@$(PYTHON) tools/check_python.py
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q --no-deps $(PIP_ARGS) -r tests/served/requirements.lock
	@touch $@
