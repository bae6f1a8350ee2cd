# `make setup`, `make test` and `make demo` need Python 3.10+, g++ and make; everything else comes from PyPI.
# PYTHON chooses the interpreter that .venv is made with, PYTEST_ARGS is passed on to pytest.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-done
NPROC  ?= 2

.PHONY: setup test test-slow lint format demo clean

setup: $(STAMP)

# The stamp is older than pyproject.toml exactly when the dependencies may have changed.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Lepton needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Use make PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "$(PYTHON) cannot make virtual environments; on Debian install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest -n $(NPROC) $(PYTEST_ARGS)

test-slow: setup
	$(BIN)/python -m pytest -n $(NPROC) -m slow $(PYTEST_ARGS)

demo: setup
	$(BIN)/python examples/digits_demo.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
