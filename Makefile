# Everything runs in a virtual environment of its own; `make demo` and `make test` need nothing but Python 3.11+.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BROKER ?= sqlite
PYTEST := $(BIN)/python -m pytest
# The broker somebody asked for by name, as opposed to the default.
CHOSEN := $(if $(filter command environment,$(firstword $(origin BROKER))),$(BROKER))
# SECONDS as somebody gave it: a shell that make runs in may export its own.
CHAOS_SECONDS := $(if $(filter command,$(firstword $(origin SECONDS))),$(SECONDS))

.DEFAULT_GOAL := help
.PHONY: help demo test test-brokers quick check contract kills bench bench-core docs package clean
.PHONY: audit brokers chaos fuzz soak

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 14

$(STAMP): pyproject.toml scripts/venv.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/venv.sh
	@touch $@

demo: $(STAMP) ## Run the order-processing demo (MSGBUS_URL=... for another broker)
	@$(BIN)/python -m examples.shop

test: $(STAMP) ## Run the whole test suite
	@sh scripts/test.sh $(BIN)

test-brokers: $(STAMP) ## Run the broker adapters' suites against real brokers (BROKER=nats for one)
	@sh scripts/test_brokers.sh $(BIN) $(or $(CHOSEN),rabbitmq nats kafka)

quick: $(STAMP) ## Run the tests that need no broker server
	@$(PYTEST) -q tests/core tests/house

check: $(STAMP) ## Lint, format check, types, import directions
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

contract: $(STAMP) ## Run one adapter's contract kit (BROKER=sqlite)
	@$(PYTEST) -q tests/contract/test_$(BROKER).py

chaos: $(STAMP) ## Break brokers under load and check that nothing is lost (BROKER=nats,kafka SECONDS=60 SEED=7 REPORT=page)
	@$(BIN)/python -m scripts.chaos $(CHOSEN) $(if $(CHAOS_SECONDS),--seconds $(CHAOS_SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(REPORT),--report $(REPORT))

soak: $(STAMP) ## Load and soak (BROKER=nats CASE=overload SCALE=0.1 REPORT=page)
	@$(BIN)/python -m scripts.soak $(or $(CHOSEN),sqlite) $(CASE) $(if $(SCALE),--scale $(SCALE)) $(if $(REPORT),--report $(REPORT))

fuzz: $(STAMP) ## Let a coverage-guided fuzzer look for bad input (SECONDS=60)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group fuzz
	@$(BIN)/python -m tests.fuzz $(if $(CHAOS_SECONDS),--seconds $(CHAOS_SECONDS))

audit: $(STAMP) ## Look up known vulnerabilities of what is installed (needs pypi.org itself)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group audit
	@$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/audited.txt
	@$(BIN)/pip-audit --strict --disable-pip --no-deps -r $(VENV)/audited.txt

brokers: $(STAMP) ## Start real brokers and print their URLs, until Ctrl-C (BROKER=nats,kafka for some)
	@$(BIN)/python -m scripts.brokers --install $(CHOSEN)
	@$(BIN)/python -m scripts.brokers $(CHOSEN)

kills: $(STAMP) ## Kill 1,000 workers between effect and acknowledgement, over SQLite and over PostgreSQL
	@MSGBUS_TEST_KILLS=$(or $(KILLS),1000) $(PYTEST) -q -rP tests/stores/test_kills.py

bench: $(STAMP) ## Measure beside raw clients and other libraries, write docs/benchmarks.md (BROKER= CASE= ROUNDS= MINUTES= JSON=)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	@$(BIN)/python -m tests.bench.suite --install $(if $(CHOSEN),--broker "$(CHOSEN)") $(if $(CASE),--case "$(CASE)") $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(JSON),--json "$(JSON)")

bench-core: $(STAMP) ## Measure dispatch cost and the embedded brokers (JSON=file)
	@$(BIN)/python tests/bench/core.py $(if $(JSON),--json $(JSON))

docs: $(STAMP) ## Build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: $(STAMP) ## Build wheel and sdist, install them into clean environments, import
	@$(BIN)/python scripts/check_package.py

clean: ## Remove the environment and what was built
	rm -rf $(VENV) build dist site .coverage* .mypy_cache .ruff_cache .pytest_cache
