# AirBridge. `make` lists the targets; each does its own set-up on a fresh machine with Python 3.11 or 3.12,
# make and a package index.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Byte-compiling once saves seconds at every start of an Airflow process.
unexport PYTHONDONTWRITEBYTECODE

# The first interpreter that answers with a version AirBridge runs on.
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	$$python -c 'import sys; sys.version_info[:2] in {(3, 11), (3, 12)} or sys.exit(1); print(sys.executable)' \
	2>/dev/null && break; done)
UV_VERSION := 0.13.9
UV := .tools/bin/uv
RUN := $(UV) run --no-sync
STAMP := .venv/.synced

export UV_PYTHON := $(PYTHON)
export UV_PYTHON_DOWNLOADS ?= never
# The system's certificates: behind a company's own CA no others verify the package index.
export UV_SYSTEM_CERTS ?= 1
CERTIFICATES := if a certificate is what fails above: SSL_CERT_FILE=/path/to/ca-bundle.pem names the certificates to trust \
	(PIP_CERT as well for the first step); without it the system's are used

# The targets that people use from day to day, in this order.
EVERYDAY := setup shell demo up down test lint types check chaos bench-quick

.PHONY: help help-all
help: ## the everyday targets
	@for target in $(EVERYDAY); do grep -hE "^$$target:.*## " $(MAKEFILE_LIST); done \
		| awk -F ':.*## ' '{printf "  %-22s %s\n", $$1, $$2}'
	@echo "  help-all               every target"
help-all: ## every target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-22s %s\n", $$1, $$2}'

$(UV):
	@test -n '$(PYTHON)' || { echo 'AirBridge needs Python 3.11 or 3.12 on PATH, or make PYTHON=/path/to/python3.12' >&2; exit 2; }
	@echo "setting up uv $(UV_VERSION) in .tools" >&2
	@$(PYTHON) ci/scripts/bootstrap_uv.py .tools $(UV_VERSION) || { echo "$(CERTIFICATES)" >&2; exit 1; }

$(STAMP): $(UV) uv.lock pyproject.toml $(wildcard */pyproject.toml)
	@echo "installing the locked dependencies into .venv" >&2
	@$(UV) sync --frozen --quiet --compile-bytecode || { echo "$(CERTIFICATES)" >&2; exit 1; }
	@touch $@

ON_PATH := airbridge is in .venv/bin: 'make shell' opens a shell that has it on PATH
.PHONY: setup shell
setup: $(STAMP) ## the development environment in .venv
	@echo "$(ON_PATH)" >&2
shell: $(STAMP) ## a shell with airbridge, airbridge-worker and airflow on PATH
	@PATH="$(CURDIR)/.venv/bin:$$PATH" VIRTUAL_ENV="$(CURDIR)/.venv" $${SHELL:-bash}

.PHONY: demo
demo: $(STAMP) ## the whole platform on this machine: a DAG with tasks in two regions (IMAGES=1: workers in containers)
ifdef IMAGES
	@test -e $(IMAGES_OUT)/release.json || $(MAKE) images
	@$(RUN) python ci/scripts/demo_images.py $(IMAGES_OUT)
else
	@$(RUN) airbridge demo
endif

.PHONY: up down status
up: $(STAMP) ## start the local platform and stay with it (Ctrl-C ends it)
	@echo "$(ON_PATH)" >&2
	@$(RUN) airbridge up
down: $(STAMP) ## end the local platform
	@$(RUN) airbridge down
status: $(STAMP) ## what runs where
	@$(RUN) airbridge status

# More than the two cores of a small machine: half of the tests' time is spent waiting.
PYTEST_WORKERS ?= 3
# How many failed tests of a run are tried a second time; 0 in the nightly run.
RETRIES ?= 2
.PHONY: lock-check
lock-check: $(STAMP) ## uv.lock is what pyproject.toml asks for
	@$(UV) lock --check --quiet
.PHONY: test test-fast test-other-python acceptance lint types check
test: $(STAMP) ## every test but those that need tools of their own (SLOW=1: slow ones, too), or a selection: T=path K=expression
ifdef T
	@$(RUN) pytest $(T) -q $(if $(SLOW),--slow) $(if $(K),-k "$(K)")
else
	@SLOW=$(SLOW) $(RUN) bash ci/scripts/test.sh $(PYTEST_WORKERS) $(RETRIES)
endif
test-other-python: $(STAMP) ## the contract tests under the Python, 3.11 or 3.12, that .venv does not have
	@bash ci/scripts/other_python.sh $(PYTEST_WORKERS)
test-fast: $(STAMP) ## unit tests only
	@$(RUN) pytest tests/unit -q -n $(PYTEST_WORKERS)
acceptance: $(STAMP) ## the whole local platform under test
	@$(RUN) pytest tests/acceptance -q --slow
lint: $(STAMP) ## ruff, the direction of imports between the packages, the limits of make metrics
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) python ci/scripts/import_rules.py
	@mkdir -p .reports; $(RUN) python ci/scripts/metrics.py --check >.reports/metrics.txt || { cat .reports/metrics.txt; exit 1; }
types: $(STAMP) ## mypy, strict, over every package and ci/scripts
	@$(RUN) mypy
	@$(RUN) mypy ci/scripts
	@infra/.venv/bin/mypy --config-file infra/pyproject.toml
check: lint types test ## everything that must hold before a change lands

BODY_EXAMPLES ?= 100000
.PHONY: bodies
bodies: $(STAMP) ## no body that passes the gateway reaches code in Airflow's decoders: 100,000 generated examples
	@AIRBRIDGE_BODY_EXAMPLES=$(BODY_EXAMPLES) $(RUN) pytest tests/contract/test_inert_bodies.py -q -n 0 -o timeout=3600 -s

.PHONY: metrics coverage hooks
metrics: $(STAMP) ## readability in figures, of this checkout or of others: PATHS="dir ..." SINCE=revision LIST=1
	@$(RUN) python ci/scripts/metrics.py $(if $(SINCE),--since "$(SINCE)") $(if $(LIST),--list) $(PATHS)
coverage: $(STAMP) ## lines that unit, contract and integration tests run, subprocesses included: .reports/coverage
	@$(UV) sync --frozen --quiet --inexact --group coverage
	@bash ci/scripts/coverage.sh $(PYTEST_WORKERS)
PRE_COMMIT := .tools/pre-commit/bin/pre-commit
$(PRE_COMMIT): | $(STAMP)
	@$(UV) venv --quiet .tools/pre-commit
	@$(UV) pip install --quiet --no-config --exclude-newer $(TOOL_ERA) --python .tools/pre-commit/bin/python pre-commit==4.3.0
hooks: $(PRE_COMMIT) ## install git hooks: lint, types, and the form of commit messages
	@$(PRE_COMMIT) install --hook-type pre-commit --hook-type commit-msg

CHAOS_RUNS ?= 2
CHAOS_KEEP ?= .chaos
.PHONY: chaos chaos-mutants cuts
chaos: $(STAMP) ## seeded histories of faults and kills, checked, and the checker checked (CHAOS_RUNS=40, CHAOS_SEED=17, CHAOS_MUTANT=fencing)
	@$(RUN) python -m tests.chaos --keep $(CHAOS_KEEP) \
		$(if $(CHAOS_SEED),--seed $(CHAOS_SEED),--runs $(CHAOS_RUNS) --mutations $(if $(CHAOS_MUTANT),--mutant $(CHAOS_MUTANT)))
chaos-mutants: $(STAMP) ## every mutant of the chaos suite is found, and nothing in its history without it: 20 minutes (CHAOS_MUTANT=triggers)
	@$(RUN) python -m tests.chaos --keep $(CHAOS_KEEP) --mutations --controls $(if $(CHAOS_MUTANT),--mutant $(CHAOS_MUTANT))
cuts: $(STAMP) ## network cuts of 1 s to 600 s at every boundary, in real time: a quarter of an hour
	@$(RUN) python -m tests.chaos.cuts --out docs/explanation/measurements/partition-results.json

TRACED_TASKS ?= 200
TRACED_CUT ?= 60
.PHONY: traces dashboards bench-observing
traces: $(STAMP) ## tracing on: is every task one connected trace, also through a cut? (six minutes)
	@$(RUN) python -m tests.chaos.traces --tasks $(TRACED_TASKS) --cut $(TRACED_CUT)
bench-observing: $(STAMP) ## what a task's events, spans and metrics cost, in CPU
	@$(RUN) python -m tests.benchmarks.observing
dashboards: $(STAMP) ## docs/reference/metrics.md's table, dashboards and alarms, from their one definition
	@$(RUN) python -m airbridge.control_plane.observability.generate .

.PHONY: docs
docs: $(STAMP) ## the generated pages of docs/reference: settings, commands and known vulnerabilities
	@$(RUN) python ci/scripts/reference.py
	@$(RUN) airbridge-ci advisories

.PHONY: clean
clean: ## remove what the targets made, but not the local platform's state
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .reports

.PHONY: rotation
rotation: $(STAMP) ## the runbook for a compromise, while 200 tasks run and 1,000 certificates are renewed
	@AIRBRIDGE_ROTATION_DAG=two_hundred AIRBRIDGE_ROTATION_RENEWALS=1000 $(RUN) pytest tests/acceptance/test_rotation.py -q -s

.PHONY: bench bench-quick bench-stampede bench-swarm bench-costs bench-capacity bench-runner bench-steps bench-triggers bench-profile bench-report
bench: $(STAMP) ## AirBridge beside LocalExecutor, Celery and edge3, at several distances, in 32 minutes (Celery needs redis-server); RESUME=1 goes on with a run that was cut short
	@$(RUN) python -m tests.benchmarks.bench $(if $(RESUME),--resume)
bench-quick: $(STAMP) ## fan-out and chain: AirBridge beside LocalExecutor, in five minutes
	@$(RUN) python -m tests.benchmarks.bench --quick
bench-swarm: $(STAMP) ## 10 to 10,000 simulated workers against one gateway on one core; SWARM="10 100 1000" for fewer
	@$(RUN) python -m tests.benchmarks.swarm $(if $(SWARM),--workers $(SWARM)) $(SWARM_OPTIONS)
bench-costs: $(STAMP) ## CPU and WAL of each kind of request by itself, at rest and of placing tasks; four minutes
	@$(RUN) python -m tests.benchmarks.costs
bench-capacity: $(STAMP) ## 100,000 workers by simulation of what bench-costs and bench-swarm measured; half a minute, no server
	@$(RUN) python -m tests.benchmarks.capacity $(CAPACITY_OPTIONS)
bench-runner: $(STAMP) ## CPU and memory of a task on the worker, the control plane left out
	@$(RUN) python -m tests.benchmarks.bench_runner
bench-triggers: $(STAMP) ## 5,000 triggers in a worker's host, and in the process of Airflow's triggerer
	@AIRFLOW__CORE__FERNET_KEY= $(RUN) python -m tests.benchmarks.bench_trigger_host
bench-profile: $(STAMP) ## flame graphs of gateway, scheduler and agent under a fan-out, by py-spy
	@$(RUN) python -m tests.benchmarks.profile
bench-steps: $(STAMP) ## where the time of a chain's task goes, step by step, at round trips of 0 and 100 ms
	@$(RUN) python -m tests.benchmarks.steps
bench-report: $(STAMP) ## put the figures of the benchmarks into docs/explanation/measurements/performance.md
	@$(RUN) python -m tests.benchmarks.report

bench-stampede: $(STAMP) ## 1,000 workers that find the gateway again at once; draws docs/images/stampede.png
	@$(UV) run --frozen --inexact --quiet --group bench python -m tests.benchmarks.stampede --picture docs/images/stampede.png

.PHONY: dashboard-test dashboard-images dashboard-bench
dashboard-test: $(STAMP) ## every page and action of the dashboard in headless Chromium, light, dark and on a phone
	@bash ci/scripts/browser_tools.sh
	@$(UV) sync --frozen --quiet --inexact --group browser
	@$(RUN) pytest tests/browser -q
dashboard-images: ## as dashboard-test, and keep the screenshots in docs/images
	@AIRBRIDGE_SCREENSHOTS=docs/images $(MAKE) dashboard-test
dashboard-bench: $(STAMP) ## how fast the dashboard is with 10,000 work items, 1,000 workers and 20 open browsers
	@$(RUN) python -m tests.benchmarks.bench_dashboard

.PHONY: proof-names
proof-names: $(STAMP) ## readability limits, import directions, docs, reference pages and the contributor's tour
	@$(RUN) python ci/scripts/metrics.py --check
	@$(RUN) python ci/scripts/proof.py names tests/unit/docs tests/unit/test_imports.py tests/unit/ci/test_metrics.py

include ci/ci.mk
include ci/security.mk
include ci/faults.mk
include ci/anywhere.mk
include ci/scale.mk
include ci/sovereign.mk
include ci/packages.mk
include ci/host.mk
include infra/infra.mk
include tests/mutation/mutants.mk
