"""The part `edge`: the edge system with two servers on one GPU, and with one beside it, making real images.

Start reading at `measure`.
"""

import importlib.util
from pathlib import Path

from common.command_line import ROOT
from common.tables import read_csv
from gpu_check.processes import run_script, script_flags
from gpu_check.results import Conditions, Results, SkipError


def measure(given: Conditions, results: Results) -> None:
    """Make images of the pocket model on two servers and on one, and add their times. Raises SkipError without Ray."""
    if importlib.util.find_spec("ray") is None:
        raise SkipError("needs ray, which is not installed")
    for servers in (2,) if given.dry else (2, 1):
        case = f"{servers} server{'s' if servers > 1 else ''}, pocket model"
        with results.case(case):
            make_images(servers, case, given, results)


def make_images(servers: int, case: str, given: Conditions, results: Results) -> None:
    """Do so on that many servers. Raises RuntimeError when tasks have failed, or a server has made nothing.

    In a dry run one server may make all images, which are so few that they are made before the other has begun.
    """
    tasks, out = 4 if given.dry else 100, Path(given.scratch) / f"edge_{servers}"
    flags = {"num_tasks": tasks, "num_servers": servers, "scheduler": "water_filling", "profile_repeats": 1}
    flags |= {"models": ROOT / "models/pocket", "steps": "1-2" if given.dry else "10-19", "device": given.device}
    flags |= {"gpus_per_server": 0 if given.dry else 1 / servers, "out": out, "profile": f"{out}.json"}
    run_script("dedgeai/main_dedgeai.py", *script_flags(**flags))
    done = [row for row in read_csv(out / "tasks.csv") if row["state"] == "done"]
    used = {row["server"] for row in done}
    if len(done) < tasks or (len(used) < servers and not given.dry):
        raise RuntimeError(f"{len(done)} of {tasks} tasks were done by {len(used)} of {servers} servers")
    seconds = max(float(row["finished_s"]) for row in done) - min(float(row["submitted_s"]) for row in done)
    results.add(case, "images a second", tasks / seconds, "1/s", f"{tasks} images")
    results.add(case, "mean delay", sum(float(row["delay_s"]) for row in done) / tasks, "s")
