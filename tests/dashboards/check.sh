#!/usr/bin/env bash
# Checks dashboards, alerts and recording rules with a real promtool. Run it with `make check-dashboards`.
#
# promtool and Prometheus are those on the PATH, or those of Debian's package, which is unpacked into .tools/ and not
# installed: no service, no root. Grafana's types are a package of PyPI. Nothing is fetched when it is there already.
# `check.sh --get` only gets Prometheus and says where it is.
set -euo pipefail
cd "$(dirname "$0")/../.."

TOOLS="$PWD/.tools"
UNPACKED="$TOOLS/prometheus/usr/bin"
ATTEMPTS=3
# The version with schemaVersion 42; plain `pip install` takes one of another numbering.
TYPES=grafana-foundation-sdk==0.0.21

say() { printf 'check-dashboards: %s\n' "$*" >&2; }

# Unpacks Debian's package. The move at the end makes the folder appear whole or not at all.
unpack() {
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
  local attempt scratch
  mkdir -p "$TOOLS"
  for attempt in $(seq "$ATTEMPTS"); do
    say "fetching Debian's package of Prometheus (attempt $attempt of $ATTEMPTS)"
    scratch="$(mktemp -d "$TOOLS/fetch.XXXXXX")"
    if (cd "$scratch" && apt-get -qq download prometheus >&2 && dpkg -x prometheus_*.deb prometheus); then
      rm -rf "$TOOLS/prometheus"
      mv "$scratch/prometheus" "$TOOLS/prometheus"
      rm -rf "$scratch"
      return 0
    fi
    rm -rf "$scratch"
    # A machine without the lists of packages, as most containers are.
    apt-get -qq update >&2 || true
  done
  return 1
}

# The folder of promtool and prometheus.
find_tools() {
  if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
    dirname "$(command -v promtool)"
    return
  fi
  [ -x "$UNPACKED/promtool" ] || unpack || {
    say "there is no promtool; hint: put promtool and prometheus on the PATH, from the package prometheus"
    exit 1
  }
  echo "$UNPACKED"
}

# A Python with Grafana's types.
python_with_types() {
  local venv="$TOOLS/grafana-types"
  if ! [ -e "$venv/ready" ]; then
    say "installing $TYPES"
    rm -rf "$venv"
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check "$TYPES" >&2 || {
      say "Grafana's types cannot be installed; hint: pip must reach a package index"
      return 1
    }
    touch "$venv/ready"
  fi
  echo "$venv/bin/python"
}

command -v python3 >/dev/null || { say "there is no python3; hint: install Python 3.9 or newer"; exit 1; }
FOLDER="$(find_tools)"
if [ "${1:-}" = --get ]; then
  echo "$FOLDER"
  exit
fi
python3 -B -m unittest discover -q -s tests/dashboards -p 'test_*.py'
PYTHON="$(python_with_types)"
"$PYTHON" -B tests/dashboards/schema.py
python3 -B tests/dashboards/check.py "$FOLDER/promtool"
