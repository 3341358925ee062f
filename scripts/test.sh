#!/usr/bin/env bash
# Set up .venv, check style and types, and run the tests: those marked `alone`, which measure time, by themselves, then the
# others in two processes, a file at a time. Tests marked `slow` are left out, unless --slow comes first: bash
# scripts/test.sh --slow runs all tests. Other arguments go to pytest, which then has one process: bash scripts/test.sh -k resume
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
export DEDGEAI_GPU="${DEDGEAI_GPU:-auto}" # tests marked `cuda` run on the CPU where there is no GPU
chosen="not slow"
if [ "${1:-}" = --slow ]; then
    chosen="slow or not slow"
    shift
fi
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest -m "$chosen" "$@"
fi
.venv/bin/python -m pytest -m "alone and ($chosen)"
exec .venv/bin/python -m pytest -m "not alone and ($chosen)" -n 2 --dist loadfile
