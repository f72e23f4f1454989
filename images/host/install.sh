#!/bin/sh
# Installs, upgrades and removes an AirBridge worker on a host with systemd, from the folder that this script is in: its wheels, each
# by its hash, and nothing from the network.
set -eu
# The worker's user reads and runs what root makes here, whatever root's own umask.
umask 022

here=$(cd "$(dirname "$0")" && pwd)
home=/opt/airbridge-worker
etc=/etc/airbridge
state=/var/lib/airbridge-worker
unit=airbridge-worker.service
unit_file=/etc/systemd/system/$unit

usage() {
  cat <<'END'
usage: install.sh install --gateway URL --region NAME --ca FILE [--join token] --token FILE [--pool NAME] [--name NAME] [--slots N]
                          [--set NAME=VALUE]...
       install.sh install --gateway URL --region NAME --ca FILE --join bound_key --name NAME [--token FILE] ...
       install.sh install --gateway URL --region NAME --ca FILE --join aws_iam ...
       install.sh upgrade      replace the worker's code; running tasks finish first
       install.sh doctor       check this host
       install.sh uninstall    drain and remove the worker; --purge removes its settings, identity and unreported results, too

  --gateway   https:// URL of the gateway's port for workers
  --ca        PEM file of the roots that the gateway's certificate chains to
  --join      how the worker joins: by a join token (the default), by this host's own key, which an operator or a token binds to
              its name, or by the host's IAM role
  --token     file with a join token; it is copied, and readable by the worker only. With --join bound_key it binds this host's
              key once; without it the worker starts after an operator has bound the key that is printed
  --set       another setting of the worker, as in worker.toml: --set slot_memory_mib=2048 --set 'pool="gpu"'
END
}

say() { echo "airbridge: $*"; }
fail() { echo "airbridge: $*" >&2; exit 1; }
usage_fail() { echo "airbridge: $*" >&2; usage >&2; exit 2; }

# The Python that the wheels are for.
find_python() {
  wanted=$(cat "$here/python-version")
  for python in "python$wanted" python3; do
    if found=$(command -v "$python" 2>/dev/null) &&
      "$found" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$wanted')" 2>/dev/null; then
      echo "$found"
      return
    fi
  done
  fail "Python $wanted is not installed: apt-get install python$wanted python$wanted-venv, or dnf install python$wanted"
}

# A new environment beside those that are there; prints its folder. One that is complete is used again.
make_environment() {
  release=$(cat "$here/release")
  target=$home/$release
  if [ ! -e "$target/complete" ]; then
    python=$(find_python)
    rm -rf "$target"
    install -d -m 0755 "$home"
    "$python" -m venv "$target" >&2 ||
      fail "$python cannot make an environment: apt-get install python$(cat "$here/python-version")-venv"
    for list in third-party.txt own.txt; do
      "$target/bin/python" -m pip --isolated install --quiet --disable-pip-version-check --no-index --no-deps --require-hashes \
        --find-links "$here/wheels" --requirement "$here/$list" >&2
    done
    "$target/bin/airbridge-worker" --help >/dev/null
    chmod -R go+rX,go-w "$target"
    touch "$target/complete"
  fi
  echo "$target"
}

# The link that the unit starts from, replaced in one step.
switch_to() {
  ln -sfn "$1" "$home/current.new"
  mv -T "$home/current.new" "$home/current"
}

quote() { # TEXT: as a string of TOML
  printf '"%s"' "$(printf %s "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

# What is needed to write the settings; before anything is made.
check_options() {
  [ -n "$gateway" ] && [ -n "$region" ] && [ -n "$ca" ] || usage_fail "--gateway, --region and --ca are needed"
  case $join in
    token) [ -n "$token" ] || usage_fail "--token is needed, unless --join says otherwise" ;;
    bound_key) [ -n "$token" ] || [ -n "$name" ] || usage_fail "--join bound_key needs --name: the key is bound to it" ;;
    aws_iam) [ -z "$token" ] || usage_fail "--join aws_iam takes no --token" ;;
    *) usage_fail "--join is $join; it must be token, bound_key or aws_iam" ;;
  esac
}

# This host's public key, made now: an operator binds it before the worker can join.
print_key() {
  install -d -m 0700 -o airbridge -g airbridge "$state"
  key=$(runuser -u airbridge -- "$home/current/bin/airbridge-worker" key --config "$etc/worker.toml")
  say "installed; an operator binds this host's key:"
  say "  airbridge worker bind $name --region $region${pool:+ --pool $pool} --key $key"
  say "then start the worker: systemctl start $unit"
}

write_settings() {
  [ -r "$ca" ] || fail "$ca cannot be read"
  [ -z "$token" ] || [ -r "$token" ] || fail "$token cannot be read"
  install -d -m 0755 "$etc"
  install -m 0644 "$ca" "$etc/ca.crt"
  [ -z "$token" ] || install -m 0400 -o airbridge -g airbridge "$token" "$etc/join.token"
  {
    echo "# Settings of this worker; airbridge-worker doctor checks them. Written by install.sh, which never changes them again."
    echo "gateway_url = $(quote "$gateway")"
    echo "region = $(quote "$region")"
    [ -z "$pool" ] || echo "pool = $(quote "$pool")"
    [ -z "$name" ] || echo "name = $(quote "$name")"
    [ -z "$slots" ] || echo "slots = $slots"
    echo "ca_file = $(quote "$etc/ca.crt")"
    echo "join_method = $(quote "$join")"
    [ -z "$token" ] || echo "join_token_file = $(quote "$etc/join.token")"
    echo "state_dir = $(quote "$state")"
    printf %s "$more"
  } >"$etc/worker.toml.new"
  chmod 0644 "$etc/worker.toml.new"
  mv "$etc/worker.toml.new" "$etc/worker.toml"
}

install_unit() {
  install -m 0644 "$here/$unit" "$unit_file"
  systemctl daemon-reload
}

# Start, and wait until the worker answers: it does before it has reached the gateway, and not with a wrong setting.
start() {
  systemctl enable --quiet "$unit"
  systemctl reset-failed "$unit" 2>/dev/null || true
  systemctl restart "$unit" || return 1
  attempt=0
  while [ "$attempt" -lt 60 ]; do
    attempt=$((attempt + 1))
    sleep 1
    systemctl is-active --quiet "$unit" || return 1
    "$home/current/bin/airbridge-worker" status --config "$etc/worker.toml" >/dev/null 2>&1 && return 0
  done
  return 1
}

explain_failure() {
  systemctl status --no-pager --lines 5 "$unit" >&2 || true
  fail "$1; journalctl -u $unit says why"
}

do_install() {
  [ ! -e "$home/current" ] || fail "a worker is installed already: 'upgrade' replaces its code, 'uninstall' removes it"
  [ -e "$etc/worker.toml" ] && [ -z "$gateway" ] || check_options
  id -u airbridge >/dev/null 2>&1 ||
    useradd --system --user-group --home-dir "$state" --no-create-home --shell /usr/sbin/nologin airbridge
  if [ -e "$etc/worker.toml" ] && [ -z "$gateway" ]; then
    say "keeping $etc/worker.toml"
  else
    write_settings
  fi
  say "installing $(cat "$here/release")"
  target=$(make_environment)
  switch_to "$target"
  install_unit
  if [ -n "$gateway" ] && [ "$join" = bound_key ] && [ -z "$token" ]; then
    systemctl enable --quiet "$unit"
    print_key
    return
  fi
  start || explain_failure "the worker does not start"
  say "the worker runs: systemctl status $unit, $home/current/bin/airbridge-worker status --config $etc/worker.toml"
}

do_upgrade() {
  [ -e "$home/current" ] || fail "no worker is installed here"
  old=$(readlink -f "$home/current")
  # All that can fail without the worker's stop is done before it.
  target=$(make_environment)
  target=$(readlink -f "$target")
  [ "$target" != "$old" ] || { say "$(basename "$target") is installed already"; return; }
  cp "$unit_file" "$unit_file.old"
  say "waiting for running tasks: the worker takes no new ones"
  systemctl stop "$unit"
  switch_to "$target"
  install_unit
  if ! start; then
    say "$(basename "$target") does not start: going back to $(basename "$old")" >&2
    switch_to "$old"
    mv "$unit_file.old" "$unit_file"
    systemctl daemon-reload
    start || true
    explain_failure "the upgrade was undone"
  fi
  rm -f "$unit_file.old"
  # The one before is kept, to go back to.
  for folder in "$home"/*; do
    [ -L "$folder" ] || [ "$folder" = "$target" ] || [ "$folder" = "$old" ] || rm -rf "$folder"
  done
  say "$(basename "$old") was replaced by $(basename "$target")"
}

do_uninstall() {
  systemctl disable --quiet "$unit" 2>/dev/null || true
  say "waiting for running tasks"
  systemctl stop "$unit" 2>/dev/null || true
  rm -f "$unit_file"
  systemctl daemon-reload
  rm -rf "$home"
  if [ -n "$purge" ]; then
    # Not the whole folder: on a host of the control plane it holds more than the worker's.
    rm -f "$etc/worker.toml" "$etc/worker.toml.new" "$etc/worker.env" "$etc/ca.crt" "$etc/join.token"
    rmdir "$etc" 2>/dev/null || [ ! -e "$etc" ] || say "$etc is kept: it holds files that are not the worker's"
    rm -rf "$state"
    userdel airbridge 2>/dev/null || true
    say "removed, with its settings and state"
  else
    say "removed; $etc and $state are kept (--purge removes them)"
  fi
}

do_doctor() {
  [ -e "$home/current" ] || fail "no worker is installed here"
  # With the unit's user and variables.
  exec systemd-run --quiet --pipe --wait --collect --property User=airbridge --property "EnvironmentFile=-$etc/worker.env" \
    "$home/current/bin/airbridge-worker" doctor --config "$etc/worker.toml"
}

gateway='' region='' ca='' join=token token='' pool='' name='' slots='' more='' purge=''
[ $# -gt 0 ] || usage_fail "what is to be done?"
action=$1
shift
while [ $# -gt 0 ]; do
  case $1 in
    --purge) purge=1; shift; continue ;;
    --help | -h) usage; exit 0 ;;
  esac
  [ $# -ge 2 ] || usage_fail "$1 needs a value"
  case $1 in
    --gateway) gateway=$2 ;;
    --region) region=$2 ;;
    --ca) ca=$2 ;;
    --join) join=$2 ;;
    --token) token=$2 ;;
    --pool) pool=$2 ;;
    --name) name=$2 ;;
    --slots) slots=$2 ;;
    --set) more="$more$(printf %s "${2%%=*}" | tr -d ' ') = ${2#*=}
" ;;
    *) usage_fail "$1 is not known" ;;
  esac
  shift 2
done
case $action in
  --help | -h | help) usage; exit 0 ;;
esac
[ "$(id -u)" = 0 ] || fail "this needs root: it makes a user, a unit and $home"
command -v systemctl >/dev/null || fail "this host has no systemd; the worker's container runs without it"
case $action in
  install) do_install ;;
  upgrade) do_upgrade ;;
  uninstall) do_uninstall ;;
  doctor) do_doctor ;;
  *) usage_fail "$action is not known" ;;
esac
