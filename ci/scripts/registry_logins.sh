#!/usr/bin/env bash
# Sign skopeo in to every registry of an environment, with the AWS credentials at hand: registry_logins.sh dev
set -euo pipefail
.venv/bin/airbridge-ci registries "$1" | while read -r address; do
  host=${address%%/*}
  region=${host#*.dkr.ecr.}
  aws ecr get-login-password --region "${region%%.*}" | skopeo login --username AWS --password-stdin "$host"
done
