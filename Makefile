# Everything is set up by the targets themselves: `make demo` or `make test` on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# glibc gives large blocks back to the system at once, and fetching them again page by page slows
# CPU work several times over.
export MALLOC_MMAP_THRESHOLD_ ?= 4294967296
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

.PHONY: demo test test-slow lint types clean

demo: $(VENV)/.installed
	$(BIN)/unsee demo

# A process a core, up to four, each of one thread: a tiny model's layers gain nothing by more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 4

test: lint types
	$(PYTEST)

test-slow: $(VENV)/.dev
	$(PYTEST) -m slow
	PYTHONPATH=tests/bare $(PYTEST) -m "not slow and not extra"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev .typing/unsee
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

.typing/unsee:
	mkdir -p .typing && ln -sfn .. $@

clean:
	rm -rf $(VENV) .typing build dist *.egg-info
