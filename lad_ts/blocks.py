"""Many episodes at once, for what does not learn: its episodes are independent, so they are rows of one batch.

Opt-TS is computed so beside every run, on the same arrivals. Start reading at `run_block`.
"""

import numpy as np

from common.random_streams import Stream
from lad_ts.environment_lad import CollaborativeMEC, EnvironmentParameters, Scenario, draw_arrivals
from lad_ts.episodes import EpisodeStatistics
from lad_ts.method import Runnable
from lad_ts.references import OptTS

CELLS_AT_ONCE = 4_000_000  # task cells of the episodes that are run together, which bounds their memory


def run_block(
    config: EnvironmentParameters,
    scenario: Scenario,
    runnable: Runnable,
    seeds: list[int],
    episodes: range,
    stream: Stream = Stream.TRAINING_ARRIVALS,
) -> EpisodeStatistics:
    """Run what does not learn on all (seed, episode) at once; rows are seeds within episodes: [E * S]."""
    rows = [(seed, episode) for episode in episodes for seed in seeds]
    env = CollaborativeMEC(scenario.repeated(len(episodes)), slot_length=config.slot_length)
    return runnable.run(env, draw_arrivals(config, rows, stream), rows)


def block_length(config: EnvironmentParameters, seeds: int) -> int:
    """Episodes that fit into CELLS_AT_ONCE, at least one."""
    return max(1, CELLS_AT_ONCE // (config.num_slots * config.num_bs * config.num_tasks * seeds))


class OptDelays:
    """Opt-TS's mean delays on the arrivals of a stream, those of a training by default, some episodes ahead."""

    def __init__(
        self,
        config: EnvironmentParameters,
        scenario: Scenario,
        seeds: list[int],
        end: int,
        stream: Stream = Stream.TRAINING_ARRIVALS,
    ) -> None:
        self.config, self.scenario, self.seeds, self.end, self.stream = config, scenario, seeds, end, stream
        self.ahead = range(0)
        self.delays: np.ndarray = np.empty(0)  # [episodes ahead, S]

    def of(self, episode: int) -> np.ndarray:
        """Mean delay [S] in s of an episode before `end`."""
        if episode not in self.ahead:
            block = block_length(self.config, len(self.seeds))
            self.ahead = range(episode, min(episode + block, self.end))
            stats = run_block(self.config, self.scenario, OptTS(), self.seeds, self.ahead, self.stream)
            self.delays = stats.mean.reshape(-1, len(self.seeds))
        return self.delays[episode - self.ahead.start]
