# Three commands on a fresh machine: `make demo`, `make test` and `make real`.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint tests/constraints.txt --editable
# two processes, a file of tests stays in one of them: fixtures are made once
WORKERS ?= -n 2 --dist loadfile

# of the main job on a real model: texts per class, and which texts (see depthsys real --help)
SPLIT ?= 400/200/200
TEXTS ?= movies

.PHONY: demo real test lint bench docs clean

demo: OUT ?= out/demo
demo: .venv/.installed
	$(BIN)/depthsys demo --out $(OUT) --force

real: OUT ?= out/real
real: .venv/.installed
	$(BIN)/depthsys fetch
	$(BIN)/depthsys real --texts $(TEXTS) --split $(SPLIT) --out $(OUT) --force

test: .venv/.installed-dev
	$(BIN)/python -m pytest $(WORKERS)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: .venv/.installed-dev
	$(BIN)/python -m pytest tests/benchmarks -s -m "not gpu"

# the documentation site; warnings are errors, and nothing is fetched
docs: OUT ?= out/site
docs: .venv/.installed-docs
	$(BIN)/python -m sphinx --builder html --nitpicky --fail-on-warning --keep-going --quiet \
		--doctree-dir out/doctrees docs $(OUT)
	@echo "The site: $(OUT)/index.html"

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "depthsys needs Python 3.11 or newer; got $$($(PYTHON) --version). Use make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml tests/constraints.txt
	@echo "Installing depthsys into .venv (torch and friends: some minutes the first time) ..."
	$(INSTALL) .
	@touch $@

.venv/.installed-dev: .venv/bin/python pyproject.toml tests/constraints.txt
	@echo "Installing depthsys and its test tools into .venv (some minutes the first time) ..."
	$(INSTALL) ".[dev]"
	@touch $@ .venv/.installed

.venv/.installed-docs: .venv/bin/python pyproject.toml tests/constraints.txt
	@echo "Installing depthsys and what builds its documentation into .venv ..."
	$(INSTALL) ".[docs]"
	@touch $@

clean:
	rm -rf .venv out build *.egg-info
