#!/usr/bin/env bash
# Every test, in three pytest runs: those of single parts, then those that need a whole platform, in two halves beside each other
# (one with the platforms that tests share, one with the platforms of single modules), because a platform mostly waits.
# A module's tests run in one process, so that what they share is started once.
# A failed test is tried once more under the same conditions, at most RETRIES tests over all runs: tests/support/retries.py.
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

retried() { { grep -ho 'property name="first_attempt"' "$reports"/*.xml || true; } | wc -l; }

pytest tests/unit tests/contract tests/integration tests/chaos tests/boot -q "${slow[@]}" -n "$workers" --dist loadfile --no-loadscope-reorder \
  --retries "$retries" --junit-xml "$reports/parallel.xml"
left=$((retries - $(retried)))
half() { pytest tests/acceptance -q "${slow[@]}" -m "$1" --retries "$left" --junit-xml "$reports/$2.xml"; }
# In process groups of their own: other background jobs ignore an interrupt, and the platforms would stay.
set -m
half "shared_platform" shared >"$reports/shared.log" 2>&1 & shared=$!
half "not shared_platform" own & own=$!
set +m
trap '{ kill -INT -- "-$shared"; kill -INT -- "-$own"; wait; } 2>/dev/null || true' INT TERM HUP
status=0
wait "$own" || status=$?
wait "$shared" || status=$?
trap - INT TERM HUP
cat "$reports/shared.log"
[ "$status" = 0 ] || exit "$status"
if [ "$(retried)" -gt "$retries" ]; then
  echo "FAILED: $(retried) tests were tried again over all runs, at most $retries may be" >&2
  exit 1
fi
