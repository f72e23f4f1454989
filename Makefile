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

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-22s %s\n", $$1, $$2}'

$(UV):
	@test -n '$(PYTHON)' || { echo 'AirBridge needs Python 3.11 or 3.12 on PATH, or make PYTHON=/path/to/python3.12' >&2; exit 2; }
	@echo "setting up uv $(UV_VERSION) in .tools" >&2
	@$(PYTHON) ci/scripts/bootstrap_uv.py .tools $(UV_VERSION)

$(STAMP): $(UV) uv.lock pyproject.toml $(wildcard */pyproject.toml)
	@echo "installing the locked dependencies into .venv" >&2
	@$(UV) sync --frozen --quiet --compile-bytecode
	@touch $@

.PHONY: setup
setup: $(STAMP) ## the development environment in .venv

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
	@$(RUN) airbridge up
down: $(STAMP) ## end the local platform
	@$(RUN) airbridge down
status: $(STAMP) ## what runs where
	@$(RUN) airbridge status

PYTEST_WORKERS ?= 2
.PHONY: test test-fast acceptance lint types check
test: $(STAMP) ## unit, contract and integration tests in parallel, then the acceptance suite
	@$(RUN) ci/scripts/test.sh $(PYTEST_WORKERS)
test-fast: $(STAMP) ## unit tests only
	@$(RUN) pytest tests/unit -q -n $(PYTEST_WORKERS)
acceptance: $(STAMP) ## the whole local platform under test
	@$(RUN) pytest tests/acceptance -q
lint: $(STAMP) ## ruff
	@$(RUN) ruff check
	@$(RUN) ruff format --check
types: $(STAMP) ## mypy, strict
	@$(RUN) mypy
check: lint types test ## everything that must hold before a change lands

CHAOS_RUNS ?= 2
CHAOS_KEEP ?= .chaos
.PHONY: chaos cuts
chaos: $(STAMP) ## seeded histories of faults and kills, checked, and the checker checked (CHAOS_RUNS=40, CHAOS_SEED=17)
	@$(RUN) python -m tests.chaos --keep $(CHAOS_KEEP) \
		$(if $(CHAOS_SEED),--seed $(CHAOS_SEED),--runs $(CHAOS_RUNS) --mutations)
cuts: $(STAMP) ## network cuts of 1 s to 600 s at every boundary, in real time: a quarter of an hour
	@$(RUN) python -m tests.chaos.cuts --out docs/partition-results.json

TRACED_TASKS ?= 200
TRACED_CUT ?= 60
.PHONY: traces dashboards bench-observing
traces: $(STAMP) ## tracing on: is every task one connected trace, also through a cut? (six minutes)
	@$(RUN) python -m tests.chaos.traces --tasks $(TRACED_TASKS) --cut $(TRACED_CUT)
bench-observing: $(STAMP) ## what a task's events, spans and metrics cost, in CPU
	@$(RUN) python -m tests.benchmarks.observing
dashboards: $(STAMP) ## docs/metrics.md's table, dashboards and alarms, from their one definition
	@$(RUN) python -m airbridge.control_plane.dashboards .

.PHONY: clean
clean: ## remove what the targets made, but not the local platform's state
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: rotation
rotation: $(STAMP) ## the runbook for a compromise, while 200 tasks run and 1,000 certificates are renewed
	@AIRBRIDGE_ROTATION_DAG=two_hundred AIRBRIDGE_ROTATION_RENEWALS=1000 $(RUN) pytest tests/acceptance/test_rotation.py -q -s

.PHONY: bench bench-quick bench-stampede bench-swarm bench-runner bench-profile bench-report
bench: $(STAMP) ## AirBridge beside LocalExecutor, Celery and edge3, at several distances, in 26 minutes (Celery needs redis-server); RESUME=1 goes on with a run that was cut short
	@$(RUN) python -m tests.benchmarks.bench $(if $(RESUME),--resume)
bench-quick: $(STAMP) ## fan-out and chain: AirBridge beside LocalExecutor, in five minutes
	@$(RUN) python -m tests.benchmarks.bench --quick
bench-swarm: $(STAMP) ## 10 to 10,000 simulated workers against one gateway on one core; SWARM="10 100 1000" for fewer
	@$(RUN) python -m tests.benchmarks.swarm $(if $(SWARM),--workers $(SWARM))
bench-runner: $(STAMP) ## CPU and memory of a task on the worker, the control plane left out
	@$(RUN) python -m tests.benchmarks.bench_runner
bench-profile: $(STAMP) ## flame graphs of gateway, scheduler and agent under a fan-out, by py-spy
	@$(RUN) python -m tests.benchmarks.profile
bench-report: $(STAMP) ## put the figures of the benchmarks into docs/performance.md
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

include ci/ci.mk
include ci/security.mk
include infra/infra.mk
