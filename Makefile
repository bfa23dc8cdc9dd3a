# Everything a newcomer, pre-commit and continuous integration call.
#   make demo [KEEP=1]   data in, a promoted model that answers out, through Airflow
#   make test            the whole suite
VENV   := .venv
PYTHON ?= python3.11
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# uv looks for local wheels where pip is told to.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: setup demo test lint format clean

setup: $(READY)

# uv installs in a fraction of pip's time; bytecode is compiled here once instead of in every first import.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/recflow demo $(if $(KEEP),--keep)

# By files over all cores (tests/conftest.py), for tests share what they start; then those that need the machine alone.
test: $(READY)
	$(BIN)/pytest -n logical --dist loadfile -m "not alone"
	$(BIN)/pytest -m alone tests/services

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) var build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
