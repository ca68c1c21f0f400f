# make demo    a small real chat model answers, its features show, a voice is turned up
# make test    the whole test suite
# Both create .venv and install what they need; the second run starts at once.
# PYTHON=python3.12 make demo   takes another interpreter (3.11 or newer).

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint format docs bench clean

demo: .venv/core
	@$(BIN)/sparsight demo

test: .venv/dev
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/docs
	$(BIN)/zensical build --strict -f mkdocs.yml

bench: .venv/dev
	@for script in bench/decode.py bench/read.py bench/harvest.py bench/serve.py bench/churn.py bench/gpu.py bench/train_gpu.py; do $(BIN)/python $$script || exit 1; done
	@$(BIN)/python bench/table.py

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sparsight needs Python 3.11 or newer; '$(PYTHON)' is older. Say which: PYTHON=python3.12 make ..."; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/core: .venv/python pyproject.toml constraints.txt
	@echo "Installing sparsight into .venv (once)..."
	@$(PIP) -e .
	@touch $@

.venv/dev: .venv/python pyproject.toml constraints.txt
	@echo "Installing sparsight and its test tools into .venv (once)..."
	@$(PIP) -e '.[dev]'
	@touch $@ .venv/core

.venv/docs: .venv/python pyproject.toml constraints.txt
	@$(PIP) -e '.[docs]'
	@touch $@

clean:
	rm -rf .venv build dist site .pytest_cache .hypothesis .ruff_cache
