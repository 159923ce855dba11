# Everything from a fresh clone: `make demo`, `make test`. The environment is made on first use and lives in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@

demo: $(STAMP)
	$(BIN)/pthnet demo demo

# Many tests kill, freeze and restart real processes, which a busy machine may starve: a failed one is run once more, and the
# last line says how many were. `test-all` adds the longest fault tests of a cluster.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --reruns 1

test: $(STAMP)
	$(PYTEST) -m "not exhaustive"

test-all: $(STAMP)
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf demo build .pytest_cache .mypy_cache .ruff_cache
