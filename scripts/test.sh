#!/usr/bin/env bash
# Set up .venv, check the style and run all tests: those marked `alone`, which measure time, by themselves, then the others
# in two processes, a file at a time. Arguments go to pytest, which then has one process, as in: bash scripts/test.sh -k resume
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi
.venv/bin/python -m pytest -m alone
exec .venv/bin/python -m pytest -m "not alone" -n 2 --dist loadfile
