#!/usr/bin/env bash
# Make the project's virtual environment in .venv and install everything, torch first. Quick when nothing changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=.venv/installed-$(cat requirements.txt requirements-rl.txt requirements-dev.txt pyproject.toml | cksum | cut -d' ' -f1)
[ -f "$stamp" ] && exit 0
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
# torch alone first: the pinned version is taken as it is, and no other package can pull in a larger build
.venv/bin/python -m pip install --quiet --disable-pip-version-check "$(grep -E '^torch==' requirements.txt)"
# then the other packages, and this project's own folders, in place
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-rl.txt -r requirements-dev.txt -e .
touch "$stamp"
