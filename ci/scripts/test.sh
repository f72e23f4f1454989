#!/usr/bin/env bash
# Every test, in two pytest runs: those of single parts, then those that each need the whole machine.
# A module's tests run in one process, so that what they share is started once.
# A failed test is tried once more under the same conditions, at most RETRIES tests over both runs: tests/support/retries.py.
# The outcomes, with the first attempts of retried tests, are kept as JUnit XML in .reports/.
# Usage: [SLOW=1] test.sh [WORKERS [RETRIES]]   (called by `make test`)
set -euo pipefail
unset PYTHONDONTWRITEBYTECODE
workers=${1:-2}
retries=${2:-2}
reports=.reports
slow=()
[ -z "${SLOW:-}" ] || slow=(--slow)
mkdir -p "$reports"
rm -f "$reports"/*.xml

pytest tests/unit tests/contract tests/integration tests/chaos tests/boot -q "${slow[@]}" -n "$workers" --dist loadfile --no-loadscope-reorder \
  --retries "$retries" --junit-xml "$reports/parallel.xml"
retried=$({ grep -o 'property name="first_attempt"' "$reports/parallel.xml" || true; } | wc -l)
pytest tests/acceptance -q "${slow[@]}" --retries "$((retries - retried))" --junit-xml "$reports/acceptance.xml"
