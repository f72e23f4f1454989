#!/bin/sh
# Brings the worker of this host to the release and the settings of a Terraform configuration, by the package's own install.sh.
# Every action can be repeated after it failed or was cut off.
#
#   worker.sh unpack SHA256 ARCHIVE [URL]     verify a package, downloaded from URL if that is given, and unpack it
#   worker.sh apply SHA256 DIGEST FOLDER      install, upgrade or install anew; FOLDER holds arguments, ca.crt and join.token
#   worker.sh remove [--purge]                drain and remove the worker
set -eu
# What install.sh makes is read by the worker's user, whatever the login's mask is.
umask 022
export SYSTEMD_COLORS=0 SYSTEMD_URLIFY=0

packages=/opt/airbridge-worker-packages
current=/opt/airbridge-worker/current
etc=/etc/airbridge
unit=airbridge-worker.service

say() { echo "airbridge: $*"; }
fail() { echo "airbridge: $*" >&2; exit 1; }

# The package's folder, whatever its name.
installer() { # SHA256
  set -- "$packages/$1"/airbridge-worker-*/install.sh
  [ -e "$1" ] || fail "unpacking: the package is not an AirBridge worker: it has no airbridge-worker-*/install.sh"
  echo "$1"
}

verify() { # SHA256 FILE
  found=$(sha256sum "$2" | cut -d ' ' -f 1)
  [ "$found" = "$1" ] || fail "verifying the package: its SHA-256 is $found, not $1"
}

unpack() { # SHA256 ARCHIVE [URL]
  if [ -e "$packages/$1/complete" ]; then
    rm -f "$2"
    say "package $1 is there already"
    return
  fi
  install -d -m 0700 "$packages"
  rm -rf "$packages/new"
  mkdir "$packages/new"
  if [ -n "${3:-}" ]; then
    command -v curl >/dev/null || fail "downloading the package: curl is not installed"
    curl --fail --silent --show-error --location --proto '=https' --retry 3 --output "$packages/new/package" "$3" ||
      fail "downloading the package from $3 failed"
  else
    mv "$2" "$packages/new/package" || fail "copying the package: $2 is missing"
  fi
  rm -f "$2"
  verify "$1" "$packages/new/package"
  tar xzf "$packages/new/package" -C "$packages/new" --no-same-owner || fail "unpacking the package failed"
  rm "$packages/new/package"
  rm -rf "${packages:?}/$1"
  mv "$packages/new" "$packages/$1"
  installer "$1" >/dev/null
  touch "$packages/$1/complete"
  say "unpacked package $1"
}

# What a key is bound to.
identity() { grep -E '^(gateway_url|region|pool|name|join_method) = ' "$etc/worker.toml" 2>/dev/null || true; }

# The worker may wait for an operator who binds its key, unless it ran under the same name; else it has to run.
check_runs() {
  if [ -e "$packages/ran" ] && [ "$(cat "$packages/ran")" = "$(identity)" ]; then may_wait=''; fi
  [ -n "$may_wait" ] || systemctl is-active --quiet "$unit" || systemctl start "$unit" ||
    fail "starting the worker: $unit does not start; journalctl -u $unit says why"
}

install_anew() { # INSTALLER FOLDER
  if [ -e "$current" ]; then
    say "the settings are others: the worker drains, and is installed anew"
    sh "$1" uninstall || fail "removing the worker for its new settings failed"
  fi
  script=$1
  folder=$2
  set --
  while IFS= read -r line; do set -- "$@" "$line"; done <"$folder/arguments"
  # A token that was handed over before serves again.
  [ -s "$folder/join.token" ] || ! grep -qx token "$folder/arguments" || [ ! -e "$etc/join.token" ] ||
    cp "$etc/join.token" "$folder/join.token"
  if [ -s "$folder/join.token" ]; then set -- "$@" --token "$folder/join.token"; fi
  sh "$script" install "$@" --ca "$folder/ca.crt" || fail "installing the worker failed"
}

apply() { # SHA256 DIGEST FOLDER
  [ -e "$packages/$1/complete" ] || fail "applying: package $1 is not on this host: it was removed by hand; taint the resource 'package'"
  script=$(installer "$1")
  may_wait=''
  if grep -qx bound_key "$3/arguments" && [ ! -s "$3/join.token" ]; then may_wait=1; fi
  # Kept until it runs again: this may be cut off after the worker was stopped, and repeated.
  if systemctl is-active --quiet "$unit"; then identity >"$packages/ran"; fi
  if [ -e "$current" ] && [ "$(cat "$packages/settings" 2>/dev/null)" = "$2" ]; then
    sh "$script" upgrade || fail "upgrading the worker failed"
  else
    rm -f "$packages/settings"
    install_anew "$script" "$3"
  fi
  check_runs
  rm -f "$packages/ran"
  echo "$2" >"$packages/settings"
  for folder in "$packages"/*; do
    [ "$folder" = "$packages/$1" ] || [ "$folder" = "$packages/settings" ] || rm -rf "$folder"
  done
}

remove() { # [--purge]
  script=''
  for each in "$packages"/*/airbridge-worker-*/install.sh; do [ ! -e "$each" ] || script=$each; done
  if [ -n "$script" ]; then
    sh "$script" uninstall "$@" || fail "removing the worker failed"
  elif [ -e "$current" ]; then
    fail "removing the worker: no package is on this host; run the release's 'install.sh uninstall' by hand"
  fi
  rm -rf "$packages"
}

[ "$(id -u)" = 0 ] || fail "this needs root: log in as root, or as a user who may use sudo without a password"
[ $# -gt 0 ] || fail "what is to be done?"
action=$1
shift
# One application at a time, should one go on after its connection was cut.
exec 9>/run/airbridge-terraform.lock
flock -n 9 || fail "$action: another application is under way on this host"
case $action in
  unpack) unpack "$@" ;;
  apply)
    token=$3/join.token
    trap 'rm -f "$token"' EXIT
    apply "$@"
    ;;
  remove) remove "$@" ;;
  *) fail "$action is not known" ;;
esac
