#!/usr/bin/env bash
# The same commit gives the same digests: builds it in two clones, in folders of different depth, side by side, and compares.
# Each build has a storage of its own, so that neither finds a layer of the other.
# Usage: images_verify.sh pinned|debian [OUT]   (called by `make images-verify`; OUT keeps the first build)
set -euo pipefail
unset PYTHONDONTWRITEBYTECODE
base=${1:-pinned}
out=${2:-}
root=$(git rev-parse --show-toplevel)
revision=$(git rev-parse HEAD)
scratch=$(mktemp -d)
# Files of a rootless build belong to users of its name space.
trap 'if [ "$(id -u)" -eq 0 ]; then rm -rf "$scratch"; else buildah unshare rm -rf "$scratch"; fi' EXIT

build() {
  local storage=$scratch/storage-$2
  mkdir -p "$storage"
  printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/images"\nrunroot = "%s/run"\n[storage.options.overlay]\nskip_mount_home = "true"\n' \
    "$storage" "$storage" >"$storage/storage.conf"
  git clone --quiet "$root" "$1"
  git -C "$1" checkout --quiet "$revision"
  ln -s "$root/.tools" "$1/.tools"
  CONTAINERS_STORAGE_CONF=$storage/storage.conf airbridge-ci build --root "$1" --out "$1/dist" --base "$base" >/dev/null
}

first=$scratch/one second=$scratch/elsewhere/and/deeper/two
mkdir -p "$(dirname "$second")"
build "$first" one 2>"$scratch/log" &
build "$second" two
wait $! || { cat "$scratch/log" >&2; exit 1; }
if cmp "$first/dist/release.json" "$second/dist/release.json"; then
  echo "two builds of ${revision:0:12}, one release:" >&2
  cat "$first/dist/release.json"
  if [ -n "$out" ]; then
    rm -rf "$out"
    mv "$first/dist" "$out"
  fi
else
  diff "$first/dist/release.json" "$second/dist/release.json" >&2 || true
  echo "two builds of ${revision:0:12} differ" >&2
  exit 1
fi
