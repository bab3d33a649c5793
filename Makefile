# Needs Python >= 3.11 (with venv) and make. Everything lands in .venv; nothing else changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
# Under two minutes each; test-cluster has the others as well.
FAULTS := tests/cluster/test_sweep_faults.py tests/cluster/test_memory_fault.py -k "not the_head"

# Scripts that import their neighbours: each folder is checked by itself.
SCRIPTS := analysis analysis/comparison analysis/learning analysis/benchmarks

.DEFAULT_GOAL := help
.PHONY: help install quickstart compare test test-faults test-cluster lint clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Create .venv and install rlprune into it (once)

# A second run reinstalls nothing: the stamp is newer than what decides on the packages.
$(STAMP): pyproject.toml constraints.txt
	@echo "Creating $(VENV) with $(PYTHON) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing rlprune and its tested dependencies (torch and ray are large: this takes minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "Installed. Activate with: . $(BIN)/activate"

quickstart: $(STAMP)  ## Prune a small CNN on scikit-learn's digits and show the table (ARGS=... passed on)
	$(BIN)/rlprune quickstart $(ARGS)

compare: $(STAMP)  ## Every method on a little of Fashion-MNIST at budget 0.5: table and figure (resumes)
	$(BIN)/rlprune train analysis/comparison/small.yaml --out runs/compare $(if $(wildcard runs/compare/config.yaml),--resume) $(ARGS)
	$(BIN)/python analysis/comparison/tables.py runs/compare

lint: $(STAMP)  ## ruff check, ruff format --check, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@for part in $(SCRIPTS); do $(BIN)/mypy $$(ls $$part/*.py | grep -v rollout_nodes) || exit 1; done
	$(BIN)/mypy --explicit-package-bases analysis/benchmarks/rollout_nodes.py

test: lint  ## Lint, unit, property and integration tests (with ARGS=...: pytest ARGS alone)
ifeq ($(strip $(ARGS)),)
	$(BIN)/python -m pytest -n 2 tests/unit tests/property
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 15 -m 'not fault' tests/integration
else
	$(BIN)/python -m pytest $(ARGS)
endif

test-faults: $(STAMP)  ## More faults, also in the middle of a sweep on a cluster of cluster/local
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 10 -m fault tests/integration
	$(BIN)/python -m pytest --durations 10 $(FAULTS)

test-cluster: $(STAMP)  ## Every fault on such a cluster: also the loss of the head and of machines
	$(BIN)/python -m pytest --durations 15 tests/cluster $(ARGS)

clean:  ## Remove .venv, caches and build files (never your runs)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find rlprune tests analysis -name __pycache__ -type d -prune -exec rm -rf {} +
