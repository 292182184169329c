# make demo: the main job in miniature. make test: lint, types, fast tests. Both prepare .venv first.
# make bench: the benchmarks of training and sampling, about 80 minutes; benchmarks/.venv holds the peers. Let nothing
# else run meanwhile.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
READY := .venv/.ready

BENCH := benchmarks/.venv

.PHONY: install demo train test test-all lint bench
.DEFAULT_GOAL := demo

install: $(READY)

$(READY): pyproject.toml constraints.txt hashes.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "gpt_ablate needs Python 3.10 or newer; this is $$($(PYTHON) --version): make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r hashes.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/python -m gpt_ablate.train --multirun experiment=demo $(ARGS)

train: install
	$(BIN)/python -m gpt_ablate.train norm=pre layers=fresh $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n auto $(ARGS)

test-all: lint
	$(BIN)/pytest -n auto --slow $(ARGS)

$(BENCH)/.ready: pyproject.toml constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt -e '.[joblib]'
	@touch $@

bench: $(BENCH)/.ready
	for name in start sampling step sweep equality scaling; do $(BENCH)/bin/python -m benchmarks.$$name || exit 1; done
