# make demo   trains iterated block-matrix networks on real digits and writes a report
# make test   runs the tests
# make lint   style and types
# Each creates .venv and installs what it needs first. Options:
#   PYTHON=python3.12        another interpreter
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu   the CPU-only build of torch (about 200 MB, not several GB)
#   DEMO="--quick"           options of the demo;  TESTS="-k sparse"  options of pytest

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
DEMO ?=
TESTS ?=
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test slow lint format clean install
.DELETE_ON_ERROR:

install: $(STAMP)

# The stamp is written last: an install that was interrupted is done again.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "onematrix needs Python 3.11 or newer; $(PYTHON) was not found. Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "onematrix needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -c 'import platform; print(platform.python_version())'). Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "onematrix needs Python's venv module. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing into $(VENV): torch (CPU build) and what goes with it, about 650 MB to load and 2.5 GB on disk; a few minutes."
	@rm -f $(STAMP)
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/onematrix demo $(DEMO)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" $(TESTS)

slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
