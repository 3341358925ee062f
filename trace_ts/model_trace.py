"""Learned policies: a score network that all servers share, and LAD-TS, a chain that denoises such scores.

Start reading at `ScorePolicy`.
"""

import dataclasses

import numpy as np

from common.random_streams import Stream, random_generator
from trace_ts.choosing import NETWORK, Policy, new_policy
from trace_ts.rules import CONSTANTS, mean_service
from trace_ts.scenario import Scenario
from trace_ts.score import BY_MODEL, BY_STATION, BY_USER, NOISE, ON_SERVER, ON_TASK, ZEROS, Network, new_network
from trace_ts.workload import Requests

LATENTS = {"zeros": ZEROS, "noise": NOISE, "user": BY_USER, "model": BY_MODEL, "base_station": BY_STATION}


@dataclasses.dataclass(frozen=True)
class Design:
    """What a learned policy is made of.

    `hidden` units. `steps` of the chain; 0: the score alone. `latent`: what the chain starts from: the result of the
    last task of the same user, model or base station, zeros or noise. Without `price` the network alone has to know
    what a load costs.
    """

    hidden: int = 16
    steps: int = 0
    latent: str = "user"
    price: bool = True

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the weights: server_in, task_in, bias, out."""
        return (self.hidden, ON_SERVER), (self.hidden, ON_TASK), (self.hidden,), (2, self.hidden)

    def begin(self, constants: np.ndarray, seed: int) -> np.ndarray:
        """Parameters [P] at which the policy is the rule with these constants [7]: the output weights are zero."""
        generator = random_generator(Stream.WEIGHTS, seed)
        scale = 1 / np.sqrt(ON_SERVER + ON_TASK)
        weights = [generator.standard_normal(shape).ravel() * scale for shape in self.shapes[:2]]
        return np.concatenate([np.log(np.maximum(constants, 1e-3)), *weights, np.zeros(3 * self.hidden)])

    def weights(self, parameters: np.ndarray) -> list[np.ndarray]:
        """The network's arrays, from parameters [P] after the constants."""
        ends = np.cumsum([len(CONSTANTS), *(int(np.prod(shape)) for shape in self.shapes)])
        parts = zip(ends[:-1], ends[1:], self.shapes, strict=True)
        return [parameters[a:b].reshape(shape) for a, b, shape in parts]


def chain_schedule(steps: int) -> np.ndarray:
    """What the predicted end and the present x count in each step's posterior mean [I, 2], the noisiest step first.

    The variance-preserving schedule of LAD-TS (arXiv 2412.18212): beta_i = 1 - exp(-b_min / I - (2i - 1) (b_max -
    b_min) / (2 I^2)), b_min 0.1, b_max 10.
    """
    i = np.arange(1, steps + 1)
    alpha = np.exp(-0.1 / max(steps, 1) - (2 * i - 1) * (10 - 0.1) / (2 * max(steps, 1) ** 2))
    kept = alpha.cumprod()
    before = np.concatenate([[1.0], kept[:-1]]) if steps else kept
    end = np.sqrt(before) * (1 - alpha) / (1 - kept)
    present = np.sqrt(alpha) * (1 - before) / (1 - kept)
    return np.stack([end, present], 1)[::-1]


@dataclasses.dataclass(frozen=True)
class ScorePolicy:
    """A learned policy for any number of servers and any scenario.

    Its parameters [P] are the logarithms of the constants of `rules.CONSTANTS`, then the network's weights.
    While news is not old, tasks go where the score is least; with `explore`, they draw by this temperature in mean
    services.
    """

    design: Design
    parameters: np.ndarray
    explore: float = 0.0

    def arrays(self, scenario: Scenario, rate: np.ndarray, requests: Requests) -> tuple[Policy, Network]:
        """What the event loop needs."""
        service, servers = mean_service(requests, rate), len(rate)
        constants = np.exp(self.parameters[: len(CONSTANTS)])
        constants[2:6] *= self.design.price
        constants[6] = constants[6] if scenario.age > 0 else self.explore
        latent = LATENTS[self.design.latent]
        memories = {BY_USER: requests.num_users, BY_MODEL: requests.num_models, BY_STATION: scenario.num_base_stations}
        network = new_network(
            servers,
            self.design.hidden,
            constants,
            np.array(
                [
                    scenario.load,
                    scenario.load_time / service,
                    scenario.age / service,
                    scenario.resident_models,
                    service * rate.mean(),
                ]
            ),
            service,
            chain_schedule(self.design.steps),
            latent,
            memories.get(latent, 1) if self.design.steps else 1,
            tuple(self.design.weights(self.parameters)),
        )
        return new_policy(NETWORK, servers, constants=constants, mean_service=[service]), network
