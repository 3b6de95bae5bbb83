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

# The quick benchmarks measure into a folder of their own; benchmarks/results holds what the documentation shows.
QUICK := $(CURDIR)/build/benchmarks

.PHONY: help demo test test-slow test-notebooks test-arm64 test-all benchmarks benchmarks-full benchmark-pages docs lint format typecheck clean

help:
	@echo "make demo       train, distil, prune, quantize, convert and measure on real digits (examples/quickstart.py)"
	@echo "make test       the test suite"
	@echo "make test-slow  the checks behind the 'slow' marker"
	@echo "make test-notebooks the notebooks, from top to bottom (they are among the slow tests)"
	@echo "make test-arm64 every kind of file on ARM kernels, under qemu-user (skips where that cannot be had)"
	@echo "make test-all   the test suite on every Python from 3.10 to 3.13 that is found here"
	@echo "make docs       the documentation site, into site/"
	@echo "make benchmarks the quick form of every benchmark (meant for under 30 minutes), then the tables and the picture"
	@echo "make benchmarks-full  what benchmarks/results does not hold yet (hours where it is empty)"
	@echo "make lint       ruff and mypy"
	@echo "make clean      remove the virtual environment and what was built"

# The stamp is remade when the requirements change; otherwise the set-up is skipped.
$(STAMP): setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "keras_kd needs Python 3.10 to 3.13; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12 ..." % v)'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Setting up $(VENV): about 3.5 GB on the disk, more than half of it TensorFlow; one to five minutes ..."
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

test-notebooks: $(STAMP)
	$(PY) -m pytest -m slow -k notebook -n $(WORKERS) --dist loadfile $(PYTEST_FLAGS)

test-arm64: $(STAMP)
	$(PY) -m pytest -m arm64 tests/arm64 $(PYTEST_FLAGS)

test-all:
	@PYTEST_FLAGS="$(PYTEST_FLAGS)" tests/all_pythons.sh

# Strict: a broken link, an unknown page or a docstring that cannot be read is an error. The variable silences the
# theme's advertisement of its successor.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "The site is in site/: open site/index.html"

benchmarks: export BENCHMARK_RESULTS = $(QUICK)
benchmarks: export BENCHMARK_TEACHER_EPOCHS ?= 1
benchmarks: $(STAMP)
	$(PY) benchmarks/step_time.py --repeats=5 --pair=digits
	$(PY) benchmarks/teacher_cache.py --parts=steps,build --pairs=small --repeats=3
	$(PY) benchmarks/tflite_tools.py --store --repeats=3
	$(PY) benchmarks/coverage.py --families=MobileNetV2
	$(PY) benchmarks/compress_memory.py
	$(PY) benchmarks/sparse_encoding.py
	$(PY) benchmarks/quality_fashion.py --form=quick --sizes=12k --seeds=1 --cache_dir=$(QUICK)/cache
	$(PY) benchmarks/losses.py --seeds=1 --examples=4000 --epochs=6 --cache_dir=$(QUICK)/cache
	$(PY) benchmarks/peer_values.py
	$(PY) benchmarks/microcontrollers.py --seeds=1 --parts=har,vowels --cache_dir=$(QUICK)/cache
	$(PY) benchmarks/compress_with_teacher.py --seeds=1 --examples=5000 --views=2 --student_epochs=4 --epochs=2 --cache_dir=$(QUICK)/cache
	$(PY) benchmarks/selective.py --seeds=0 --minutes=3
	$(PY) benchmarks/tables.py --print
	$(MAKE) --no-print-directory BENCHMARK_RESULTS= benchmark-pages

benchmarks-full: $(STAMP)
	$(PY) benchmarks/step_time.py
	$(PY) benchmarks/teacher_cache.py
	$(PY) benchmarks/teacher_cache_quality.py
	$(PY) benchmarks/tflite_tools.py --store
	$(PY) benchmarks/coverage.py
	$(PY) benchmarks/compress_memory.py
	$(PY) benchmarks/sparse_encoding.py
	$(PY) benchmarks/quality_fashion.py
	$(PY) benchmarks/quality_fashion.py --form=patient --sizes=12k --methods=alone,correlation
	$(PY) benchmarks/losses.py
	$(PY) benchmarks/peer_values.py $(PEER_FLAGS)
	$(PY) benchmarks/microcontrollers.py
	$(PY) benchmarks/compress_with_teacher.py
	$(PY) benchmarks/selective.py
	$(PY) benchmarks/ray_labelling.py
	$(PY) benchmarks/at_scale.py
	$(MAKE) --no-print-directory benchmark-pages

# What the documentation shows, from the committed results.
benchmark-pages: $(STAMP)
	$(PY) benchmarks/tables.py
	$(PY) benchmarks/teacher_cache_tables.py
	$(PY) benchmarks/compression_tables.py
	$(PY) benchmarks/distributed_tables.py
	$(PY) benchmarks/picture.py

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
	rm -rf $(VENV) .venvs build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache quickstart_output
