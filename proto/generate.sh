#!/usr/bin/env bash
# Generates src/muster/api/v1 from proto/, or with --check says whether it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=src
check=${1:-}
if [[ $check == --check ]]; then
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi
PATH="$(cd "$(dirname "$python")" && pwd):$PATH" "$python" -m grpc_tools.protoc -Iproto \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
  proto/muster/api/v1/*.proto
if [[ $check == --check ]]; then
  if ! diff -r -x __pycache__ -x __init__.py "$out/muster/api/v1" src/muster/api/v1; then
    echo "src/muster/api/v1 is not what proto/ generates; run 'make proto'" >&2
    exit 1
  fi
fi
