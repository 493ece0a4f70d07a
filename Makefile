# Needs Python 3.8 or later (with venv), git and make. Everything else is installed into .venv and .matrix.
VENV ?= .venv
RUN := $(VENV)/bin/python -m
PYTEST_ARGS ?=
MATRIX_ARGS ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help test proof demo demo-fleet bench lint format matrix audit docs build clean

help: ## Print the targets (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: $(VENV)/.installed-test $(VENV)/.installed-test-web ## Run every test on the newest Python at hand (PYTEST_ARGS="-k spool" for some of them)
	@.ci/chromium
	@.ci/redis-server
	$(VENV)/bin/python .ci/suite.py $(PYTEST_ARGS)

proof: $(VENV)/.installed-test ## Run what is too large for every day: 100,000 events, a million records, 200 rounds of chaos
	$(VENV)/bin/python .ci/suite.py --only proof -rP $(PYTEST_ARGS)

demo: $(VENV)/.installed-demo ## Show the package at work against the emulator (FILE=usage.ndjson for events of your own)
	$(RUN) x402tools.demo $(if $(FILE),--file "$(FILE)")

demo-fleet: $(VENV)/.installed-demo-fleet ## Show two hosts and two workers on one Redis or Valkey, with a worker killed
	@.ci/redis-server
	$(RUN) x402tools.demo.fleet

bench: ## Measure this package beside others and beside the limits, on this machine (BENCH_ARGS="--quick")
	@.ci/redis-server
	$$(.ci/find-python --newest) benchmarks/run.py $(BENCH_ARGS)

lint: $(VENV)/.installed-test $(VENV)/.installed-lint ## Check style, format, types and the oldest Python the code needs
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/vermin --target=3.8- --violations --no-tips x402tools

format: $(VENV)/.installed-lint ## Put the code into the one format, and fix what ruff can fix safely
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

matrix: $(VENV)/.installed-test ## Run the tests on every CPython here from 3.8 on, and with the oldest dependencies
	$(VENV)/bin/python .ci/matrix.py $(MATRIX_ARGS)

audit: $(VENV)/.installed-test $(VENV)/.installed-lint ## Look up what is known of the requirements' vulnerabilities
	$(VENV)/bin/python .ci/audit.py

docs: $(VENV)/.installed-docs ## Render the docstrings of the package into site/
	$(RUN) pdoc --output-directory site x402tools x402tools.testing x402tools.integrations

build: $(VENV)/.installed-lint ## Build the sdist, and the wheel from the sdist, into dist/
	rm -rf dist
	$(RUN) build --outdir dist .

clean: ## Remove everything that the other targets made
	rm -rf $(VENV) .matrix .bench site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp an extra: a second run installs nothing unless pyproject.toml changed.
$(VENV)/.installed-%: pyproject.toml
	@.ci/venv $(VENV) $*
	@touch $@

.PRECIOUS: $(VENV)/.installed-%
