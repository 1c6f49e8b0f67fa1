#!/usr/bin/env bash
# Build the wheel, install it in a clean environment with the locked dependencies, away from the checkout, run the demo.
set -euo pipefail
ROOT=$(realpath "$(dirname "$0")/..")
BIN=${QUAD_BIN:-$ROOT/.venv/bin}
FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT
git -C "$ROOT" archive HEAD | tar -x -C "$FOLDER" --one-top-level=source
"$BIN/python" -m build --outdir "$FOLDER/dist" "$FOLDER/source"
"$BIN/python" -m venv "$FOLDER/venv"
"$FOLDER/venv/bin/pip" install --quiet -c "$ROOT/constraints.txt" "$FOLDER"/dist/*.whl
rm -rf "$FOLDER/source"
cd "$FOLDER"
env -u PYTHONPATH "$FOLDER/venv/bin/quad" --version
env -u PYTHONPATH "$FOLDER/venv/bin/quad" demo --quiet
env -u PYTHONPATH "$FOLDER/venv/bin/quad" verify demo --workspace demo/workspace
