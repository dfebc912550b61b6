#!/usr/bin/env bash
# Installs what the demo and the tests need and this machine lacks; says what it does. Debian and Ubuntu.
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

if ! command -v cargo >/dev/null 2>&1; then
  say "there is no cargo: install a Rust toolchain (1.95 or newer) first"; exit 2
fi

missing=()
command -v cc >/dev/null 2>&1 || missing+=(gcc libc6-dev)
have_postgres || missing+=(postgresql)
# Approvals are checked against OpenSSH itself.
command -v ssh-keygen >/dev/null 2>&1 || missing+=(openssh-client)

if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null 2>&1 || { say "missing: ${missing[*]}; there is no apt-get, install them by hand"; exit 2; }
  say "updating the package lists"
  root apt-get update >/dev/null
  if [[ " ${missing[*]} " == *" postgresql "* ]]; then
    # Only the programs are wanted: no cluster is made, nothing is started.
    install postgresql-common
    root sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
  fi
  install "${missing[@]}"
fi
have_postgres || { say "PostgreSQL's server programs are still missing"; exit 2; }
