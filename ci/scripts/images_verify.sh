#!/usr/bin/env bash
# The same commit gives the same digests: builds it in two clones, in folders of different depth, and compares.
# Usage: images_verify.sh pinned|debian [OUT]   (called by `make images-verify`; OUT keeps the first build)
set -euo pipefail
unset PYTHONDONTWRITEBYTECODE
base=${1:-pinned}
out=${2:-}
root=$(git rev-parse --show-toplevel)
revision=$(git rev-parse HEAD)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

build() {
  git clone --quiet "$root" "$1"
  git -C "$1" checkout --quiet "$revision"
  ln -s "$root/.tools" "$1/.tools"
  airbridge-ci build --root "$1" --out "$1/dist" --base "$base" >/dev/null
}

first=$scratch/one second=$scratch/elsewhere/and/deeper/two
build "$first"
mkdir -p "$(dirname "$second")"
build "$second"
if cmp "$first/dist/release.json" "$second/dist/release.json"; then
  echo "two builds of ${revision:0:12}, one release:" >&2
  cat "$first/dist/release.json"
  if [ -n "$out" ]; then
    rm -rf "$out"
    cp -r "$first/dist" "$out"
  fi
else
  diff "$first/dist/release.json" "$second/dist/release.json" >&2 || true
  echo "two builds of ${revision:0:12} differ" >&2
  exit 1
fi
