"""Cooperative LAD-TS: train, resume or evaluate diffusion agents that minimise everybody's delay, and plot it.

The decisions are decentralised as in LAD-TS, the training is not; it is no part of the LAD-TS paper. Writes
results/coop/<run>/ with config.json, delay.csv, delay.png, delay.pdf and checkpoint.pt. Examples:
python lad_ts/main_coop.py --seeds 2
python lad_ts/main_coop.py --objective tail
"""

import dataclasses
from typing import Any

from common.command_line import command_line
from common.parameters import parameter
from lad_ts.environment_lad import draw_scenario
from lad_ts.model_coop import CoopAgents, CoopParameters
from lad_ts.queue_model import offered_load
from lad_ts.training import Method, TrainingParameters, run_method, training_seeds


@dataclasses.dataclass(kw_only=True)
class CoopConfig(CoopParameters, TrainingParameters):
    """Every parameter of main_coop.py."""

    episodes: int = parameter(35, "episodes to run: distil_episodes of distillation, then tuning", low=1)

    @property
    def variant(self) -> str:
        words = [
            self.objective,
            self.actor if self.actor != "shared" else "",
            "prices" if self.teacher == "prices" else "",
        ]
        return "_".join(filter(None, words)) + ("_practised" if self.practice else "")


def takeover_note(config: CoopConfig) -> str:
    """What to say where the load is so low that agents do not learn; else nothing."""
    load = offered_load(config, draw_scenario(config, training_seeds(config)))
    if not (load < config.takeover).any():
        return ""
    words = f"offered load {load.min():.2f} is below --takeover={config.takeover:g}"
    return f"{words}: there, all BSs replay the greedy rule (virtual Opt), and nothing is learned"


METHOD = Method("Cooperative LAD-TS", "coop", CoopAgents, takeover_note)


def main(config: CoopConfig, given: dict[str, Any]) -> None:
    run_method(config, given, METHOD)


if __name__ == "__main__":
    command_line(CoopConfig, main, __doc__)
