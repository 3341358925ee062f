#!/usr/bin/env bash
# Set up .venv, train LAD-TS and every baseline, leave the comparison figure and table in results/comparison, make a few
# images with the pocket model in results/images, and gather what lies in results on one page, results/index.html.
# Arguments go to scripts/reproduce.py, as in: bash scripts/reproduce.sh --episodes 500 --seeds 3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
.venv/bin/python scripts/reproduce.py "$@"
case " $* " in *" --help "* | *" -h "*) exit 0 ;; esac
.venv/bin/python resd3_medium/refine_sd3_infer.py --models models/pocket \
  --prompt "a photo of a rocket" --prompt "a photo of a guitar" --prompt "dog face" --prompt "two blue apples" \
  --prompt "a green umbrella on a yellow background" --prompt "small pizza on the left"
.venv/bin/python scripts/report.py
