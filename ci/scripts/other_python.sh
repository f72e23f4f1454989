#!/usr/bin/env bash
# The contract with Airflow's and the Task SDK's internals, and the unit tests of what both sides share, under the Python of the pair 3.11
# and 3.12 that .venv does not have. Where there is none, that is said, and nothing fails: the workflows run every suite under both.
set -euo pipefail
unset PYTHONDONTWRITEBYTECODE
workers=${1:-3}
ours=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$ours" = 3.11 ] && other=3.12 || other=3.11
for python in "python$other" "$HOME"/.pyenv/versions/"$other".*/bin/python; do
  if "$python" -c "import sys; '%d.%d' % sys.version_info[:2] == '$other' or sys.exit(1)" 2>/dev/null; then
    found=$(command -v "$python")
    break
  fi
done
if [ -z "${found:-}" ]; then
  echo "no Python $other on this machine: its tests are left out"
  exit 0
fi
echo "the contract tests under Python $other ($found)"
export UV_PROJECT_ENVIRONMENT=".venv-$other" UV_PYTHON=$found
.tools/bin/uv sync --frozen --quiet
".venv-$other/bin/pytest" tests/contract tests/unit/core tests/unit/edge_worker_runner -q -n "$workers" -p no:cacheprovider
