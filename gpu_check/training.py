"""The part `training`: scripts/bench_training.py on the device, by number of seeds.

Start reading at `measure`.
"""

import re

from common.command_line import ROOT
from common.entry_scripts import load_module
from gpu_check.processes import run_script, script_flags
from gpu_check.results import Conditions, Results

SCRIPT = "scripts/bench_training.py"
SEEDS = (1, 8, 64, 512)
ROW = re.compile(
    r"\| (?P<device>[^|]+) \| (?P<threads>\d+) \| (?P<seeds>\d+) \| (?P<seconds>[\d.]+) \| (?P<ratio>\d+) \|"
)


def measure(given: Conditions, results: Results) -> None:
    """Run the benchmark, and add a row for each line of its first table that is the device's."""
    options = set(load_module(ROOT / SCRIPT).BenchConfig.__dataclass_fields__)
    flags: dict[str, object] = {"busy": False, "shares": False, "scaling": False, "vector": False, "repeats": 2}
    if given.dry:
        flags |= {"quick": True, "plain_slots": 2}
    if {"device", "seeds"} <= options:
        flags |= {"device": given.device, "seeds": ",".join(map(str, SEEDS[:1] if given.dry else SEEDS))}
    found = {}
    for match in ROW.finditer(run_script(SCRIPT, *script_flags(**flags))):
        if (device := match["device"].strip()) != given.device:
            continue
        seeds = int(match["seeds"])
        found[seeds] = float(match["seconds"])
        case, note = f"{device}, {seeds} seeds", f"{match['threads']} CPU threads"
        results.add(case, "episode and seed", 1e3 * found[seeds], "ms", note)
        results.add(case, "plain loop / this", float(match["ratio"]))
    for seeds in sorted(set(SEEDS) - found.keys()):
        why = "dry" if given.dry else f"{SCRIPT} did not measure it"
        results.missing(f"{given.device}, {seeds} seeds", why)
    if not found:
        raise RuntimeError(f"{SCRIPT} printed no row of the device {given.device}")
