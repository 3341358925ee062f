#!/usr/bin/env bash
# Set up .venv, check the style and run all tests, in two processes that each take a file at a time. Arguments go to
# pytest, which then has one process, as in: bash scripts/test.sh -k resume
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
[ $# -gt 0 ] || set -- -n 2 --dist loadfile
exec .venv/bin/python -m pytest "$@"
