"""Policies of trace_ts on live edge servers, beside the simulation of the same requests.

Writes requests.csv and catalogue.json: the pocket model under several names and with two random LoRAs. Runs each policy
live, on servers that wait instead of computing or that make pictures, and on simulated servers of the same profile.
Writes trace_live.csv and trace_live.png beside the runs. Examples:
python scripts/trace_live.py
python scripts/trace_live.py --compute real --num_servers 2 --num_tasks 120 --max_steps 20 --load_time 0.3
"""

import common.quiet_start  # noqa: F401

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors.numpy import save_file

from common.command_line import command_line
from common.figures import plt, save_figure
from common.parameters import ParameterError, Parameters, parameter
from common.random_streams import Stream, random_generator
from common.run_folder import RESULTS, new_folder, replace_file, write_config, write_text
from common.tables import write_csv
from edge_sim.trace_scheduler import PREFIX, trace_method
from resd3_medium.finding import find_weights
from resd3_medium.folders import POCKET
from trace_ts.synthetic import generate
from trace_ts.workload import write_csv as write_requests

MAIN = Path(__file__).resolve().parents[1] / "dedgeai" / "main_dedgeai.py"
MODELS = ("pocket", "pocket-2", "pocket-3", "pocket-ink", "pocket-clay")
LORAS = {"pocket-ink": "ink.safetensors", "pocket-clay": "clay.safetensors"}
HEADER = ("policy", "servers", "mean_s", "p50_s", "p95_s", "loads")


@dataclasses.dataclass(kw_only=True)
class LiveConfig(Parameters):
    """Every parameter of trace_live.py."""

    GROUP: ClassVar[str] = "runs"

    policies: str = parameter("opt_ts,opt_ts_loading,affinity,priced", "what decides, as --scheduler trace:NAME")
    num_tasks: int = parameter(240, "requests of the synthetic generator", low=100, high=100_000)
    num_servers: int = parameter(5, "edge servers", low=1, high=100)
    load: float = parameter(
        0.8,
        "offered load: work per second over what all servers do in a second, loading not counted",
        above=0,
        high=100,
    )
    compute: str = parameter("simulated", "what live servers do, as of main_dedgeai.py", choices=("real", "simulated"))
    step_seconds: float = parameter(0.005, "simulated: time of a step on a server of speed 1", unit="s", above=0)
    max_steps: int = parameter(1000, "most denoising steps; requests of more are cut", unit="steps", low=2, high=1000)
    load_time: float = parameter(
        0.8, "time to load a model", unit="s", low=0, high=1e6, more="real: as the simulation has it."
    )
    resident_models: int = parameter(1, "models that a server holds", low=1, high=1000)
    seed: int = parameter(0, "seed of the requests", low=0)
    out: str | None = parameter(None, "folder of the results; default results/trace_live", path=True)

    def check(self) -> None:
        names = self.policies.split(",")
        for name in names:
            try:
                trace_method(f"{PREFIX}{name}")
            except ParameterError as error:
                raise ParameterError("policies", name, f"--scheduler {PREFIX}{name} {error.reason}") from None
            if names.count(name) > 1:
                raise ParameterError("policies", self.policies, f"must name {name} once")


def write_lora(path: Path, seed: int) -> None:
    """A random LoRA of rank 1 for the pocket model's attention."""
    generator, tensors = random_generator(Stream.WEIGHTS, seed), {}
    for name, shape in find_weights(POCKET, "auto")["MMDiT"].wanted.items():
        if name.endswith("attn.qkv.weight"):
            out, into = shape
            module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            for part, size in (("lora_down", (1, into)), ("lora_up", (out, 1))):
                tensors[f"{module}.{part}.weight"] = (generator.standard_normal(size) / 10).astype(np.float32)
    replace_file(path, lambda temporary: save_file(tensors, temporary))


def command(config: LiveConfig, policy: str, folder: Path) -> list[str]:
    """The command of a run but for how its servers work."""
    flags: dict[str, Any] = {
        "scheduler": f"trace:{policy}",
        "seed": config.seed,
        "arrivals": folder / "requests.csv",
        "catalogue": folder / "catalogue.json",
        "num_tasks": config.num_tasks,
        "num_servers": config.num_servers,
        "load": config.load,
        "max_steps": config.max_steps,
        "resident_models": config.resident_models,
        "rebalance": False,
    }
    if config.compute == "simulated":
        speeds = np.linspace(0.4, 1.6, config.num_servers)  # of mean 1
        flags |= {"step_seconds": config.step_seconds, "base_seconds": 0, "speeds": ",".join(f"{x:g}" for x in speeds)}
    else:  # the first live run measures the profile
        flags |= {"steps": f"1-{config.max_steps}", "profile": folder / "profile.json"}
    return [sys.executable, str(MAIN), *(f"--{name}={value}" for name, value in flags.items())]


def measure(config: LiveConfig, policy: str, folder: Path, live: bool) -> tuple[list[Any], np.ndarray]:
    """A row of the table, and the delays [K] in s, of a policy on one kind of servers. Exits with a run that fails."""
    kind = "live" if live else "simulated"
    out = folder / f"{policy.replace('/', '_')}_{kind}"
    mode = [f"--compute={config.compute}"] if live else ["--simulate"]
    code = subprocess.run([*command(config, policy, folder), *mode, f"--out={out}"], check=False).returncode
    if code:
        sys.exit(code)
    with (out / "tasks.csv").open() as file:
        delay = np.array([float(row["delay_s"]) for row in csv.DictReader(file)])
    with (out / "summary.csv").open() as file:
        loads = next(float(row["value"]) for row in csv.DictReader(file) if row["quantity"] == "loads of models")
    return [policy, kind, float(delay.mean()), *np.percentile(delay, (50, 95)).tolist(), int(loads)], delay


def plot(path: Path, rows: list[list[Any]], delays: list[np.ndarray]) -> None:
    """Left the mean delays, live beside simulated; right the share of tasks that are done within a delay."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    for number, ((policy, kind, mean, *_), delay) in enumerate(zip(rows, delays, strict=True)):
        live, colour = kind == "live", f"C{number // 2}"
        place = number // 2 + (-0.2 if live else 0.2)
        left.bar(place, mean, 0.38, color=colour, alpha=1 if live else 0.4)
        left.annotate(f"{mean:.3g}", (place, mean), ha="center", va="bottom", fontsize="small")
        share = np.arange(1, delay.size + 1) / delay.size
        right.plot(np.sort(delay), share, "-" if live else "--", color=colour, label=policy if live else None)
    names = [row[0] for row in rows[::2]]
    left.set(ylabel="mean delay (s)", title="full: live; pale: simulated", xticks=range(len(names)))
    left.set_xticklabels(names, fontsize="small")
    right.set(xlabel="delay (s)", ylabel="share of the tasks", title="dashed: simulated", xlim=(0, None), ylim=(0, 1))
    right.legend(loc="lower right", fontsize="small")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def main(config: LiveConfig, given: dict[str, Any]) -> None:
    """Run, tabulate, plot. Raises ParameterError for a folder that is in use."""
    with new_folder(config.out, RESULTS / "trace_live") as folder:
        write_config(folder, "trace_live", dataclasses.asdict(config))
        write_requests(generate(config.num_tasks, config.seed), folder / "requests.csv")
        entries = [{"name": name, "folder": str(POCKET), "load_time": config.load_time} for name in MODELS]
        for seed, (name, file) in enumerate(LORAS.items()):
            write_lora(folder / file, seed)
            entries[MODELS.index(name)]["lora"] = str(folder / file)
        write_text(folder / "catalogue.json", json.dumps(entries, indent=2) + "\n")
        found = [measure(config, name, folder, live) for name in config.policies.split(",") for live in (True, False)]
        rows, delays = [row for row, _ in found], [delay for _, delay in found]
        write_csv(folder / "trace_live.csv", HEADER, rows)
        plot(folder / "trace_live", rows, delays)
        for policy, kind, mean, _, p95, loads in rows:
            print(f"{policy:24}{kind:12}mean {mean:8.3f} s  p95 {p95:8.3f} s  {loads} loads")
        print(f"results in {folder}")


if __name__ == "__main__":
    command_line(LiveConfig, main, __doc__)
