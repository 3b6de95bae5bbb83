# make demo and make test are all a newcomer needs: each sets itself up first. BUILD.md explains the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO_FLAGS ?=
PYTEST_FLAGS ?=
# Two processes: most of the suite waits for one core at a time. WORKERS=0 runs it in one.
WORKERS ?= 2

.PHONY: help demo test test-slow test-arm64 test-all lint format typecheck clean

help:
	@echo "make demo       train, distil, prune, quantize, convert and measure on real digits (examples/quickstart.py)"
	@echo "make test       the test suite"
	@echo "make test-slow  the checks behind the 'slow' marker"
	@echo "make test-arm64 every kind of file on ARM kernels, under qemu-user (skips where that cannot be had)"
	@echo "make test-all   the test suite on every Python from 3.10 to 3.13 that is found here"
	@echo "make lint       ruff and mypy"
	@echo "make clean      remove the virtual environment and what was built"

# The stamp is remade when the requirements change; otherwise the set-up is skipped.
$(STAMP): setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "keras_kd needs Python 3.10 to 3.13; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12 ..." % v)'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Setting up $(VENV): about 800 MB, one to three minutes ..."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --upgrade pip
	@$(PY) -m pip install --quiet -e '.[dev,micro]'
	@touch $(STAMP)

demo: $(STAMP)
	$(PY) examples/quickstart.py $(DEMO_FLAGS)

test: $(STAMP)
	$(PY) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_FLAGS)

test-slow: $(STAMP)
	$(PY) -m pytest -m slow $(PYTEST_FLAGS)

test-arm64: $(STAMP)
	$(PY) -m pytest -m arm64 tests/arm64 $(PYTEST_FLAGS)

test-all:
	@PYTEST_FLAGS="$(PYTEST_FLAGS)" tests/all_pythons.sh

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

typecheck: $(STAMP)
	$(PY) -m mypy

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) .venvs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache quickstart_output
