# make demo: the main job in miniature. make test: lint, types, fast tests. Both prepare .venv first.
# make test-ray: the tests that need Ray, in .venv-ray; the extra ray cannot be installed beside the others.
# make docs: the pages of docs/ as a site, in build/site.
# make bench: the benchmarks of training and sampling, about 80 minutes; benchmarks/.venv holds the peers. Let nothing
# else run meanwhile.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
READY := .venv/.ready
RAY := .venv-ray

# Python compiles what is imported when it is: half of an installation's time was the compiling of all.
PIP_OPTIONS := --quiet --disable-pip-version-check --no-compile

BENCH := benchmarks/.venv

.PHONY: install install-ray demo train test test-all test-ray lint docs bench
.DEFAULT_GOAL := demo

# An environment in folder $(1), with the extra $(2) in the versions of constraints$(3).txt.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "gpt_ablate needs Python 3.10 or newer; this is $$($(PYTHON) --version): make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install $(PIP_OPTIONS) --require-hashes --no-deps -r hashes$(3).txt
	$(1)/bin/python -m pip install $(PIP_OPTIONS) -c constraints$(3).txt -e '.[$(2)]'
	@touch $(1)/.ready
endef

install: $(READY)

$(READY): pyproject.toml constraints.txt hashes.txt
	$(call environment,.venv,dev,)

install-ray: $(RAY)/.ready

$(RAY)/.ready: pyproject.toml constraints-ray.txt hashes-ray.txt
	$(call environment,$(RAY),ray-dev,-ray)

demo: install
	$(BIN)/python -m gpt_ablate.train --multirun experiment=demo $(ARGS)

train: install
	$(BIN)/python -m gpt_ablate.train norm=pre layers=fresh $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint
	$(BIN)/pytest -n auto $(ARGS)

test-all: lint
	$(BIN)/pytest -n auto --slow $(ARGS)

test-ray: install-ray
	$(RAY)/bin/pytest --slow tests/faults/test_ray.py tests/commands/test_readme.py $(ARGS)

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(BENCH)/.ready: pyproject.toml constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt -e '.[joblib]'
	@touch $@

bench: $(BENCH)/.ready
	for name in start sampling step sweep equality scaling; do $(BENCH)/bin/python -m benchmarks.$$name || exit 1; done
