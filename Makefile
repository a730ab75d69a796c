# Two commands: make demo, make test. Both make their own environment in .venv (python3-venv and make are all they need).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench services clean
demo: $(VENV)/.ok
	$(BIN)/tally demo demo-log --yes

test: $(VENV)/.ok services lint
	$(BIN)/python -m pytest -q -n 2 tests

lint: $(VENV)/.ok
	$(BIN)/ruff check src tests bench setup.py
	$(BIN)/mypy

bench: $(VENV)/.ok
	$(BIN)/python -m bench $(ARGS)

services:
	sh scripts/ensure-services.sh

$(VENV)/.ok: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q --disable-pip-version-check -e . --group dev --group integrations
	touch $@

clean:
	rm -rf $(VENV) demo-log
