# `make` shows what there is to make. Each target first makes the virtual environment it needs, once, and again
# when setup.cfg changes. PYTHON=python3.12 picks another interpreter, VENV=DIR another place.

PYTHON ?= python3
VENV ?= .venv
SHARED ?= ../shared
# The oldest Python that setup.cfg admits, where it is at hand (a pyenv shim may be there and still not run).
FLOOR_PYTHON ?= $(shell python3.10 -c '' 2>/dev/null && echo python3.10 || echo $(PYTHON))
FLOOR_VENV ?= .venv-floor
DEMO_VENV ?= .venv-demo
# Files of tests run side by side, as many as there are cores and memory is likely to bear.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile

BIN := $(VENV)/bin
FLOOR_BIN := $(FLOOR_VENV)/bin
DEMO_BIN := $(DEMO_VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help predict test test-floor test-demo timm-contract lint format types tables docs dist ci clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

predict: $(VENV)/.run ## Install what is needed and name the expression in examples/face.png
	$(BIN)/poster-zoo predict examples/face.png

test: $(VENV)/.dev ## Run the tests (ARGS='-k poster_tiny' picks some)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-floor: $(FLOOR_VENV)/.test ## Run the tests on the oldest releases that setup.cfg admits
	$(FLOOR_BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-demo: $(DEMO_VENV)/.test ## Run the page's tests in an environment of its own, with Chromium where there is one
	$(DEMO_BIN)/python -m pytest tests/test_demo.py $(ARGS)

# A detector gives no classes, which is what those tests are about.
timm-contract: ARGS ?= -k 'not centerface'
timm-contract: $(VENV)/.dev ## Run timm's own model tests on our classifiers (ARGS='-k poster_tiny' picks some)
	@test -f $(SHARED)/timm_contract/run.sh || \
	    { echo "$(SHARED)/timm_contract/run.sh is absent, so timm's own tests cannot be run; SHARED=DIR names another place." >&2; exit 1; }
	PATH="$(abspath $(BIN)):$$PATH" TIMM_CONTRACT_PRETRAINED=poster_tiny \
	    bash $(SHARED)/timm_contract/run.sh poster_zoo . "poster*" $(ARGS)

lint: $(VENV)/.dev ## Check style, format and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## Check the types
	$(BIN)/mypy

tables: $(VENV)/.run ## Write the model tables in README and docs anew
	$(BIN)/python docs/make_tables.py

docs: $(VENV)/.docs ## Build the documentation into docs/site; fails on stale tables and dead links
	$(BIN)/python docs/make_tables.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file docs/mkdocs.yml

dist: $(VENV)/.dev ## Build sdist and wheel into dist/ and compare what they hold
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python .ci/compare_dist.py dist

ci: ## Run everything that must hold before a change lands
	bash .ci/run

clean: ## Remove the environments and everything built
	rm -rf $(VENV) $(FLOOR_VENV) $(DEMO_VENV) build dist docs/site *.egg-info

# Each stamp is written last, so that an installation that was cut short is done again; each waits for the one
# before it, so that `make -j` never runs two pips in one environment.
$(VENV)/.made:
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.run: $(VENV)/.made setup.cfg
	@echo "Installing poster-zoo and PyTorch into $(VENV): several minutes where nothing is cached."
	$(BIN)/python -m pip install --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/python -m pip install --editable '.[docs]'
	touch $@

$(FLOOR_VENV)/.test: setup.cfg tests/floor.txt
	$(FLOOR_PYTHON) -m venv --clear $(FLOOR_VENV)
	$(FLOOR_BIN)/python -m pip install --constraint tests/floor.txt --editable '.[test]'
	touch $@

# Gradio wants an older pillow than the newest, so its environment is apart.
$(DEMO_VENV)/.test: setup.cfg
	$(PYTHON) -m venv --clear $(DEMO_VENV)
	$(DEMO_BIN)/python -m pip install --editable '.[demo,video]' pytest selenium
	touch $@
