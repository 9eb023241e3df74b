# The commands of the README. Each makes the virtual environment when there is none, installs what it needs once, and runs.
#
#   make demo    the whole path on a small generated web: corpus → model → scores → overlap report (about 3 minutes)
#   make test    linters, types, tests (what CI and pre-commit run)
#   make prove   the longer proofs: kills, S3, job submission, real data
#   make bench   measurements, each beside its peer in the same run
#   make real REAL_DATA=DIR    the same path on real pictures
#   make lowest  the tests with the oldest libraries that pyproject.toml allows (several GB: torch as the index has it)
#   make leaks SEED=N          an audit whose every answer is known: leaks of all kinds, planted by a seed, found by the right method
#   make browser Debian's Chromium and its driver, for the tests that open pages (without it they are skipped)
#
# PYTHON       the interpreter to start from (3.11 or later; crawl.engine = "img2dataset" needs one below 3.13)
# TORCH_INDEX  a package index for torch alone: give the one for CPU builds (pytorch.org, "Get started") on a machine without a GPU

PYTHON ?= python3
TORCH_INDEX ?=
REAL_DATA ?= ../shared/data
SEED ?= 1
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
LOWEST := build/lowest

# A tool that is called by name (ninja, ruff) must be this environment's; CPU work must not fight over the cores.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo test check prove bench lowest real leaks browser install clean

demo: install
	$(BIN)/python -m tests.e2e.demo

# Two at a time, each on one thread: many tests wait for servers and processes, and libraries' threads would fight over the cores. Files
# in the order of their names, for those with few and long tests would come last otherwise, when one of the two has nothing left.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

prove: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m prove -n 2 --dist loadfile --no-loadscope-reorder --timeout 1800

bench: install
	$(BIN)/python -m tests.benchmarks

# The tests' own tools are as new as these allow; what old libraries warn of is let be.
lowest: install
	$(BIN)/python -m pip install --quiet --constraint infra/constraints.txt uv
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --extra pipeline --extra trainer --extra evaluation --output-file $(LOWEST).txt pyproject.toml
	$(BIN)/uv venv --quiet --clear --seed --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --constraint $(LOWEST).txt --editable '.[all]'
	PATH=$(abspath $(LOWEST)/bin):$$PATH OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -W default -n 2 --dist loadfile --no-loadscope-reorder

real: install
	REAL_DATA=$(REAL_DATA) $(BIN)/python -m tests.e2e.real

leaks: install
	$(BIN)/python -m tests.e2e.leaks --seed $(SEED)

browser:
	command -v chromium chromedriver >/dev/null || { apt-get update -qq && apt-get install -qq --no-install-recommends chromium chromium-driver fonts-noto-cjk; }

install: $(STAMP)

# torch first and alone: a plain requirement of another package would choose a build with gigabytes of CUDA libraries.
$(STAMP): pyproject.toml infra/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or later is needed; make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' infra/constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint infra/constraints.txt --editable '.[all]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
