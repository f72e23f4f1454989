#!/usr/bin/env bash
# What building, running and storing images needs, on Debian 12 and Ubuntu 24.04; `make images-tools` calls it.
# cosign is not in Debian 12: Debian 13's package needs nothing but the C library, and is taken by its hash.
set -euo pipefail

cosign_url=http://deb.debian.org/debian/pool/main/c/cosign/cosign_2.5.0-2+b5_amd64.deb
cosign_sha256=3b6eadd27f3c4c00bfa7eab5c2397a6a15a763630c7a1d40d06ff60d24799eef
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)

missing=()
for tool in buildah podman skopeo runc mmdebstrap docker-registry; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing ${missing[*]}" >&2
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" uidmap >/dev/null
fi

if ! command -v cosign >/dev/null && [ "$(dpkg --print-architecture)" = amd64 ]; then
  echo "installing cosign" >&2
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  curl --fail --silent --show-error --location --output "$folder/cosign.deb" "$cosign_url"
  echo "$cosign_sha256  $folder/cosign.deb" | sha256sum --check --quiet
  "${as_root[@]}" dpkg --install "$folder/cosign.deb" >/dev/null
fi
echo "buildah, podman, skopeo, runc, mmdebstrap, docker-registry and cosign are there" >&2
