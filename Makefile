# Every target sets up what it needs in .venv and works from a clean clone.
PYTHON ?= python3
BENCH ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## The whole way on the bundled sample, offline.
	$(BIN)/gptailor demo --overwrite

test: $(STAMP)  ## All tests.
	$(BIN)/python -m pytest -n 2

check: $(STAMP)  ## Lint, types, formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## Times of this machine and speed beside the peers; BENCH=--quick takes minutes.
	$(BIN)/python benchmarks/times.py $(filter --quick,$(BENCH))
	$(BIN)/python benchmarks/speed.py $(BENCH)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
