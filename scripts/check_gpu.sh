#!/usr/bin/env bash
# Check and measure everything on a GPU, offline and with what is installed: bash scripts/check_gpu.sh [--minutes 8] [--part NAME]
# [--dry True]. See scripts/check_gpu.py. It takes .venv's Python where there is one, else python3, or what PYTHON names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
if ! command -v "$python" >/dev/null; then
    echo "error: there is no $python; PYTHON=/path/to/python names another" >&2
    exit 2
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
there() { "$python" -c "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))" "$@" 2>/dev/null; }
for package in torch numpy; do
    if ! there "$package"; then
        echo "error: $python lacks $package, without which nothing runs" >&2
        exit 2
    fi
done
for package in tqdm safetensors pillow:PIL matplotlib numba scipy transformers pytest; do
    there "${package#*:}" || echo "not installed: ${package%:*}; parts that need it are skipped"
done
there fire || export PYTHONPATH="$PYTHONPATH:$PWD/gpu_check/stand_in" # a few lines read the command line instead
exec "$python" scripts/check_gpu.py "$@"
