"""One agent of each method in plain torch: torch.nn modules, torch.optim.Adam, autograd. The oracle of stacked "
"agents."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from baselines.model_dqn import DQNAgents
from lad_ts.agents import StackedAgents


def mlp(theta: torch.Tensor, *widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """An ordinary network with the weights and biases of one agent's flat theta [P]."""
    layers = [nn.Linear(widths[0], widths[1]), activation(), nn.Linear(widths[1], widths[2]), activation()]
    net = nn.Sequential(*layers, nn.Linear(widths[2], widths[3]))
    nn.utils.vector_to_parameters(theta.clone(), net.parameters())
    return net


def flat(net: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def optimiser(net: nn.Module | torch.Tensor) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters() if isinstance(net, nn.Module) else [net])


def descend(adam: torch.optim.Adam, loss: torch.Tensor, lr: float) -> None:
    adam.param_groups[0]["lr"] = lr
    adam.zero_grad()
    loss.backward()
    adam.step()


def vp_alphas(steps: int) -> list[float]:
    """The paper's schedule with b_min = 0.1 and b_max = 10."""
    return [math.exp(-0.1 / steps - 9.9 * (2 * i - 1) / (2 * steps**2)) for i in range(1, steps + 1)]


def plain_denoise(
    net: nn.Module, latent: torch.Tensor, state: torch.Tensor, noise: Callable[[int], Any], predictor: str, clip: bool
) -> torch.Tensor:
    """x_0 [M, A] from latent x_I [M, A] and state [M, F]; noise(i) is the z of step i."""
    steps, x = 5, latent
    alphas = vp_alphas(steps)
    for i in range(steps, 0, -1):
        alpha, beta = alphas[i - 1], 1 - alphas[i - 1]
        bar, bar_before = math.prod(alphas[:i]), math.prod(alphas[: i - 1])
        frequency = 10_000 ** -(torch.arange(8) / 7)
        embedding = torch.cat([torch.sin(i * frequency), torch.cos(i * frequency)]).expand(len(x), 16)
        predicted = net(torch.cat([x, embedding, state], 1))
        predicted = {"softmax": lambda p: p.softmax(1), "tanh": torch.tanh, "linear": lambda p: p}[predictor](predicted)
        x_hat = (x - math.sqrt(1 - bar) * predicted) / math.sqrt(bar)
        if clip:
            x_hat = x_hat.clamp(-1, 1)
        x = (math.sqrt(bar_before) * beta * x_hat + math.sqrt(alpha) * (1 - bar_before) * x) / (1 - bar)
        if i > 1:
            x = x + math.sqrt(beta * (1 - bar_before) / (1 - bar)) * noise(i)
    return x


class PlainSAC:
    """One agent of LAD-TS, SAC-TS or D2SAC-TS."""

    def __init__(self, method: str, learner: StackedAgents, g: int) -> None:
        self.method, self.learner, self.g = method.split()[0], learner, g
        actions, features, hidden = learner.num_bs, learner.state_size, learner.params.hidden
        inputs = features if self.method == "sac" else actions + 16 + features
        activation = nn.Mish if self.method == "d2sac" else nn.ReLU
        self.actor = mlp(learner.theta_actor[g], inputs, hidden, hidden, actions, activation=activation)
        self.actor_target = copy.deepcopy(self.actor) if self.method == "d2sac" else self.actor
        thetas = learner.theta_critic[g], learner.theta_critic[learner.agents + g]
        self.critics = [mlp(theta, features, hidden, hidden, actions) for theta in thetas]
        self.critic_targets = copy.deepcopy(self.critics)
        self.log_alpha = torch.tensor(math.log(learner.params.temperature), requires_grad=True)
        self.actor_adam, self.alpha_adam = optimiser(self.actor), optimiser(self.log_alpha)
        self.critic_adams = [optimiser(critic) for critic in self.critics]

    def policy(self, actor: nn.Module, state: torch.Tensor, latent: Any, draw: torch.Tensor | None) -> torch.Tensor:
        """Probabilities [M, A]; draw [.., A, M] is this agent's share of the recorded noise."""
        if self.method == "sac":
            return actor(state).softmax(1)
        if self.method == "d2sac":  # the last draw is x_I
            x0 = plain_denoise(actor, draw[-1].T, state, lambda i: draw[i - 2].T, "tanh", clip=True)
        else:
            predictor = "softmax" if self.learner.params.noise_softmax else "linear"
            x0 = plain_denoise(
                actor, latent, state, lambda i: 0.0 if draw is None else draw[i - 2].T, predictor, clip=False
            )
        return x0.softmax(1)

    def latent(self, column: torch.Tensor | None) -> torch.Tensor | None:
        """The latents [M, A] of a batch column, looked up in the memory where it holds cell numbers."""
        if column is None or self.learner.params.replay_latent == "input":
            return column
        num_tasks = self.learner.params.num_tasks
        cells = [divmod(int(cell), num_tasks) for cell in column[:, 0]]
        return torch.stack([self.learner.memory[t, self.g, :, n] for t, n in cells])

    def update(self, batch: dict[str, torch.Tensor], draws: list[torch.Tensor]) -> None:
        p, mine = self.learner.params, {name: value[self.g] for name, value in batch.items()}
        draw = draws[0][self.g] if draws else None  # one draw of noise serves both policies
        state, alpha = mine["state"], self.log_alpha.exp().item()
        with torch.no_grad():
            next_latent = self.latent(mine.get("next_latent"))
            pi = self.policy(self.actor_target, mine["next_state"], next_latent, draw)
            q = torch.min(*(target(mine["next_state"]) for target in self.critic_targets))
            soft_value = (pi * (q - alpha * torch.log(pi + 1e-8))).sum(1)
            target = mine["reward"][:, 0] + p.gamma * soft_value
        for critic, adam in zip(self.critics, self.critic_adams, strict=True):
            chosen = critic(state)[torch.arange(len(state)), mine["action"][:, 0].long()]
            descend(adam, nn.functional.mse_loss(chosen, target), self.learner.critic_adam.lr)
        pi = self.policy(self.actor, state, self.latent(mine.get("latent")), draw)
        with torch.no_grad():
            q = torch.min(*(critic(state) for critic in self.critics))
        log_pi = torch.log(pi + 1e-8)
        descend(self.actor_adam, (pi * (alpha * log_pi - q)).sum(1).mean(), self.learner.actor_adam.lr)
        entropy = -(pi * log_pi).sum(1).detach()
        descend(
            self.alpha_adam,
            self.log_alpha.exp() * (entropy - p.target_entropy).mean(),
            self.learner.temperature_adam.lr,
        )
        pairs = list(zip(self.critic_targets, self.critics, strict=True))
        if self.method == "d2sac":
            pairs.append((self.actor_target, self.actor))
        with torch.no_grad():
            for slow, fast in pairs:
                for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
                    a.copy_((1 - p.target_rate) * a + p.target_rate * b)

    def pairs(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Every parameter here and in the stacked learner."""
        learner, g, second = self.learner, self.g, self.learner.agents + self.g
        found = {
            "actor": (flat(self.actor), learner.theta_actor[g]),
            "first critic": (flat(self.critics[0]), learner.theta_critic[g]),
            "second critic": (flat(self.critics[1]), learner.theta_critic[second]),
            "first target": (flat(self.critic_targets[0]), learner.theta_critic_target[g]),
            "second target": (flat(self.critic_targets[1]), learner.theta_critic_target[second]),
            "temperature": (self.log_alpha.detach(), learner.log_temperature[g, 0]),
        }
        if self.method == "d2sac":
            found["target actor"] = flat(self.actor_target), learner.theta_actor_target[g]
        return found


class PlainDQN:
    """One agent of DQN-TS."""

    def __init__(self, method: str, learner: DQNAgents, g: int) -> None:
        self.learner, self.g, self.updates = learner, g, 0
        hidden = learner.params.hidden
        self.net = mlp(learner.theta[g], learner.state_size, hidden, hidden, learner.num_bs)
        self.target, self.adam = copy.deepcopy(self.net), optimiser(self.net)

    def update(self, batch: dict[str, torch.Tensor], draws: list[torch.Tensor]) -> None:
        mine = {name: value[self.g] for name, value in batch.items()}
        with torch.no_grad():
            target = mine["reward"][:, 0] + self.learner.params.gamma * self.target(mine["next_state"]).max(1).values
        chosen = self.net(mine["state"])[torch.arange(len(target)), mine["action"][:, 0].long()]
        descend(self.adam, nn.functional.mse_loss(chosen, target), self.learner.adam.lr)
        self.updates += 1
        if self.updates % self.learner.params.target_every == 0:
            self.target.load_state_dict(self.net.state_dict())

    def pairs(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {
            "network": (flat(self.net), self.learner.theta[self.g]),
            "target": (flat(self.target), self.learner.theta_target[self.g]),
        }
