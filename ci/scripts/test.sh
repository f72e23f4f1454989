#!/usr/bin/env bash
# The tests, in two runs of one runner: the parallel ones, then those that each need the whole machine.
# What fails is run once more, alone, and named: on a shared machine a time-out is not always the code's fault, and a test
# that needs its second try is one to look into.
# Usage: test.sh WORKERS   (called by `make test`)
set -euo pipefail
unset PYTHONDONTWRITEBYTECODE
workers=${1:-2}

run() {
  if pytest "$@"; then return 0; fi
  printf '\n== once more, and alone: what failed\n'
  pytest "$@" --last-failed --last-failed-no-failures none -n 0
}

run tests/unit tests/contract tests/integration tests/chaos -q -n "$workers" --dist loadgroup
run tests/acceptance -q
