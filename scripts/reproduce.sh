#!/usr/bin/env bash
# Set up .venv, train LAD-TS and every baseline, and leave the comparison figure and table in results/comparison.
# Arguments go to scripts/reproduce.py, as in: bash scripts/reproduce.sh --episodes 500 --seeds 3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/python scripts/reproduce.py "$@"
