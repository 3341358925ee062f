"""Train LAD-TS and every baseline on the same arrivals, and draw the comparison.

Runs each method's own script, one process and one thread each, into <out>/runs; a second call goes on where the first
ended. Then scripts/compare.py writes the figure and the table to <out>. Example: python scripts/reproduce.py
"""

import common.quiet_start  # noqa: F401

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from baselines.methods import default_methods
from common.command_line import command_line
from common.parameters import Parameters, parameter
from common.run_folder import RESULTS, claimed
from experiments.jobs import ROOT, Job, folder_name, parse_methods, run_jobs


@dataclasses.dataclass(kw_only=True)
class ReproduceConfig(Parameters):
    """Every parameter of reproduce.py."""

    episodes: int = parameter(100, "training episodes of every method", low=2)
    seeds: int = parameter(3, "seeds of every method, trained together", low=1, high=1000)
    jobs: int = parameter(2, "methods that run at the same time, best the number of cores", low=1)
    methods: str | None = parameter(
        None,
        "methods, separated by commas; FILE.py:ClassName is one of your own; default: the papers' in both presets",
        more=f"The default is {', '.join(default_methods())}.",
    )
    out: str = parameter(str(RESULTS / "comparison"), "folder of the comparison", path=True)


def main(config: ReproduceConfig, given: dict[str, Any]) -> None:
    start = time.perf_counter()
    out = Path(config.out)
    flags = {"episodes": config.episodes, "seeds": config.seeds}
    print(f"{config.episodes} episodes, seeds: {config.seeds}; the tables of docs/scheduling.md take --episodes 500")
    names = default_methods() if config.methods is None else parse_methods(config.methods)
    jobs = [Job(name, out / "runs" / folder_name(name), flags) for name in names]
    with claimed(out):  # which compare.py will need
        pass
    run_jobs(jobs, config.jobs)
    compare = [sys.executable, str(ROOT / "scripts/compare.py"), f"--runs={out / 'runs'}", f"--out={out}"]
    code = subprocess.run(compare, check=False).returncode
    if code:
        sys.exit(code)
    peak, work = max(job.summary()["peak_memory_mib"] for job in jobs), [job.seconds() for job in jobs]
    print(f"time {(time.perf_counter() - start) / 60:.1f} min, peak memory {peak:.0f} MiB in the largest process")
    full = max(sum(work) / config.jobs, max(work)) / 60 * 500 / config.episodes
    print(
        f"a full run (--episodes 500 --seeds {config.seeds}) takes about {full:.0f} min at this pace, "
        f"{config.jobs} at a time, in the same memory"
    )


if __name__ == "__main__":
    command_line(ReproduceConfig, main, __doc__)
