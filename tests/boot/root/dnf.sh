#!/bin/sh
# `dnf install -y PACKAGE...`: what the packages bring is in this root already, or the installation fails.
[ "$1 $2" = "install -y" ] || exit 1
shift 2
for package in "$@"; do
  case $package in
    awscli) command -v aws ;;
    *) command -v "$package" ;;
  esac >/dev/null || { echo "dnf: $package is not in this root" >&2; exit 1; }
done
