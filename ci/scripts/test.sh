#!/usr/bin/env bash
# The tests, in two runs of one runner: the parallel ones, then those that each need the whole machine.
# Usage: test.sh WORKERS   (called by `make test`)
set -euo pipefail
unset PYTHONDONTWRITEBYTECODE
workers=${1:-2}
pytest tests/unit tests/contract tests/integration -q -n "$workers" --dist loadgroup
pytest tests/acceptance -q
