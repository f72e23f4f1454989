#!/usr/bin/env bash
# Coverage of unit, contract and integration tests, and of the processes that they start.
# Usage: coverage.sh [WORKERS] [PYTEST ARGUMENT ...]   (called by `make coverage`)
set -euo pipefail
workers=${1:-2}
shift || true
[ $# -gt 0 ] || set -- tests/unit tests/contract tests/integration
# Absolute, because tests start processes in folders of their own.
export COVERAGE_FILE=$PWD/.reports/coverage/data
rm -rf .reports/coverage
mkdir -p .reports/coverage

status=0
coverage run -m pytest "$@" -q -n "$workers" --dist loadfile --no-loadscope-reorder || status=$?
coverage combine --quiet
coverage html --quiet --directory .reports/coverage/html
coverage xml --quiet -o .reports/coverage/coverage.xml
echo "covered: $(coverage report --format=total) %"
echo "line by line: .reports/coverage/html/index.html"
exit "$status"
