#!/usr/bin/env bash
# What the browser tests need beside Python: Chromium, and axe-core from npm, pinned.
set -euo pipefail
cd "$(dirname "$0")/../.."
have() { command -v "$1" >/dev/null; }

if ! have chromium && ! have chromium-browser && ! have google-chrome; then
  if ! have apt-get || [ "$(id -u)" != 0 ]; then
    echo 'the browser tests need Chromium: install the package "chromium" (Debian), or Google Chrome' >&2
    exit 2
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
fi
have npm || { echo 'the browser tests need npm (package "npm"), for axe-core' >&2; exit 2; }
[ -d tests/browser/node_modules/axe-core ] || (cd tests/browser && npm ci --silent --no-audit --no-fund)
