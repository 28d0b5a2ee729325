# `make quickstart` and `make test` need only Python >= 3.10 with pip and venv: they create .venv and install into it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test coverage lint bench-peers clean

quickstart: .venv/installed
	$(BIN)/nqs-sae run specs/quickstart.toml
	$(BIN)/nqs-sae show results/quickstart

test: .venv/installed-for-tests
	$(BIN)/pytest --numprocesses auto --dist loadfile

# The same with coverage: compiling the kernels takes 1.4 times as long under its tracer.
coverage: .venv/installed-for-tests
	$(BIN)/pytest --numprocesses auto --dist loadfile --cov --cov-report=term:skip-covered

lint: .venv/installed-for-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# NetKet and PyTorch for benchmarks/cpu.py and tests/peers: some GB, in environments of their own.
bench-peers: .venv-peers/netket/installed .venv-peers/torch/installed

.venv-peers/netket/installed: benchmarks/requirements-netket.txt
	$(PYTHON) -m venv .venv-peers/netket
	.venv-peers/netket/bin/python -m pip install --quiet --requirement $<
	@touch $@

.venv-peers/torch/installed: benchmarks/requirements-torch.txt benchmarks/requirements-torch-libraries.txt
	$(PYTHON) -m venv .venv-peers/torch
	.venv-peers/torch/bin/python -m pip install --quiet --requirement $<
	.venv-peers/torch/bin/python -m pip install --quiet --no-deps --requirement benchmarks/requirements-torch-libraries.txt
	@touch $@

clean:
	rm -rf .venv .venv-peers build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
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
