# Two commands on a fresh machine: `make demo`, `make test`. Each sets up .venv itself and reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SPACE := .venv-space
READY := $(VENV)/.ready
DEMO := $(VENV)/.ready-demo
SOURCES := pyproject.toml constraints.txt hf_mamba_prune/native/CMakeLists.txt $(wildcard hf_mamba_prune/native/src/*/*)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup demo test test-slow space test-space lint format clean

$(DEMO): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $(DEMO)

$(READY): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[test,eval]"
	touch $(DEMO) $(READY)

setup: $(READY)

demo: $(DEMO)
	$(BIN)/hf-mamba-prune demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart=0

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

$(SPACE)/.ready: pyproject.toml constraints.txt space_app/requirements.txt hf_mamba_prune/native/CMakeLists.txt
	test -x $(SPACE)/bin/python || $(PYTHON) -m venv $(SPACE)
	$(SPACE)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt --editable . -r space_app/requirements.txt
	touch $(SPACE)/.ready

space: $(SPACE)/.ready
	$(SPACE)/bin/python space_app/app.py

test-space: $(SPACE)/.ready
	$(SPACE)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt "pytest>=8.2" "playwright>=1.50"
	$(SPACE)/bin/python -m pytest tests/space

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(SPACE) build hf_mamba_prune/native/_kernels.*
