"""The part `training`: scripts/bench_training.py on the device, by number of seeds.

Start reading at `measure`.
"""

import re

from gpu_check.processes import run_script, script_flags
from gpu_check.results import Conditions, Results

SCRIPT = "scripts/bench_training.py"
SEEDS = (1, 8, 64, 512)
ROW = re.compile(r"\| (?P<device>[^|]+) \| (?P<seeds>\d+) \| (?P<seconds>[\d.]+) \| (?P<ratio>\d+) \|")


def measure(given: Conditions, results: Results) -> None:
    """Run the benchmark, and add a row for each line of its first table that is the device's."""
    seeds = ",".join(map(str, SEEDS[:1] if given.dry else SEEDS))
    flags: dict[str, object] = {"device": given.device, "seeds": seeds, "repeats": 2}
    if given.dry:
        flags |= {"quick": True, "plain_slots": 2}
    found = {}
    for match in ROW.finditer(run_script(SCRIPT, *script_flags(**flags))):
        if (device := match["device"].strip()) != given.device:
            continue
        number = int(match["seeds"])
        found[number] = float(match["seconds"])
        results.add(f"{device}, {number} seeds", "episode and seed", 1e3 * found[number], "ms")
        results.add(f"{device}, {number} seeds", "plain loop / this", float(match["ratio"]))
    for number in sorted(set(SEEDS) - found.keys()):
        why = "dry" if given.dry else f"{SCRIPT} did not measure it"
        results.missing(f"{given.device}, {number} seeds", why)
    if not found:
        raise RuntimeError(f"{SCRIPT} printed no row of the device {given.device}")
