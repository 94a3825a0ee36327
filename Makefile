# `make help` lists the targets. Each installs what it needs, once: tools/setup.sh.

SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
CODE := agent tests tools $(wildcard benchmarks lab)

# More arguments for pytest and for the benchmarks: make test ARGS='-k planner -x'
ARGS ?=

.PHONY: help demo test test-page check format lint types soak bench bench-large test-fresh deb test-deb lab lab-smoke lab-shell clean setup setup-page setup-runtime

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | expand -t 14

demo: setup-runtime ## show the pools follow guests, on libvirt's in-process test driver
	@$(PYTHON) -m agent demo

test: setup ## run all tests; those with real guests start a libvirtd of their own (root)
	@$(PYTHON) -m pytest $(ARGS)

test-page: setup-page ## look at the status page in headless Chromium, which it installs (root)
	@$(PYTHON) -m pytest tests/test_browser.py $(ARGS)

soak: setup ## try the properties of the core for long: tens of thousands of cases
	@EMUPOOL_SOAK=1 $(PYTHON) -m pytest -m soak --timeout=3600 --durations=0 $(ARGS)

check: format lint types test ## all that a change must pass

format: setup ## lay out the code
	@$(PYTHON) -m ruff format $(CODE)

lint: setup ## ruff, and the import contracts
	@$(PYTHON) -m ruff check $(CODE)
	@.venv/bin/lint-imports

types: setup ## mypy, strict
	@$(PYTHON) -m mypy

bench: setup ## measure all but the largest, against floors and rivals: ARGS='arrivals --turns 5'
	@$(PYTHON) -m benchmarks $(ARGS)

bench-large: setup ## measure storms of up to 1,000 guests
	@$(PYTHON) -m benchmarks --large $(ARGS)

test-fresh: ## prove the set-up: demo and test in a new Debian 12 (root, mmdebstrap)
	@tools/test-fresh.sh

deb: ## build the Debian package, dist/emupool_VERSION_ARCH.deb (root, mmdebstrap)
	@tools/deb.sh

test-deb: ## prove it in a new Debian 12: installed, upgraded, removed, purged
	@tools/test-deb.sh

lab: setup ## boot virtual NUMA hosts and run every scenario there (root)
	@$(PYTHON) -m lab $(ARGS)

lab-smoke: setup ## the most telling scenarios, on one of them
	@$(PYTHON) -m lab --smoke $(ARGS)

lab-shell: setup ## a console on one of them
	@$(PYTHON) -m lab --shell $(ARGS)

clean: ## remove what the targets made
	rm -rf lab/cache lab/out .venv .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup:
	@tools/setup.sh dev

setup-page:
	@tools/setup.sh page

setup-runtime:
	@tools/setup.sh runtime
