# Every target makes .venv when it is missing; the constraints pin what is installed.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= agg
# Freed memory is kept for the next pass: without, up to a quarter of the time goes into having it faulted in again.
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
# Real data sets for the tests and benchmarks that want them; the rest run without.
ifneq ($(wildcard ../shared/data/.),)
export UNLEARN_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test lint types compile bench reproduce faults check wheel clean

demo: .venv/ready
	OMP_NUM_THREADS=2 $(BIN)/unlearn demo

test: .venv/ready
	$(BIN)/pytest -q -n $(WORKERS) --dist worksteal

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

compile: .venv/ready
	$(BIN)/unlearn compile

# Every row of speed, S1 to S10: a table, benchmarks/results/bench.jsonl and a picture. ROWS=S1,S7 or BENCH=--quick for less.
bench: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py $(if $(ROWS),--rows $(ROWS)) $(BENCH)

# What the authors of the four methods printed, beside ours from recorded results, with the reasons of every difference.
reproduce: .venv/ready
	$(BIN)/python benchmarks/reproduce.py $(if $(ONLY),--only $(ONLY))

# Faults at every operation of a deletion batch on a stand-in: the matrix of trials and violations.
faults: .venv/ready
	PYTHONPATH=tests $(BIN)/python -m support.matrix --out benchmarks/results/faults.jsonl

check: lint types wheel test

# The wheel holds all three packages and the golden files, and works outside the checkout.
wheel: .venv/ready
	rm -rf dist && $(BIN)/python -m build --wheel --no-isolation . >/dev/null
	sh scripts/verify_wheel.sh dist/*.whl

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@
