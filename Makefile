# `make quickstart` and `make test` need only Python >= 3.10 with pip and venv: they create .venv and install into it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint clean

quickstart: .venv/installed
	$(BIN)/nqs-sae run specs/quickstart.toml
	$(BIN)/nqs-sae show results/quickstart

test: .venv/installed-for-tests
	$(BIN)/pytest --cov --cov-report=term:skip-covered

lint: .venv/installed-for-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python >= 3.10 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: pyproject.toml | .venv/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-for-tests: pyproject.toml | .venv/python
	$(BIN)/python -m pip install --quiet --editable '.[test,test-gpu]'
	@touch $@ .venv/installed
