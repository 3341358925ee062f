"""Policies as ONNX files, which --export writes for programs that decide without this project or torch.

A file holds what one training seed has learned: the networks of all B base stations (BSs), stacked, in one graph that
takes any number M of tasks at each BS. Inputs are float32, but for the whole number t:

- observation [B, M, F]: the tasks as `observe` in observation.py tells them
- latent [B, M, servers]: what is remembered of each task's slot and number; the file's memory at first
- noise [B, M, K, servers]: standard normal numbers for K steps of a chain; D2SAC-TS starts from the last of them
- workload [B, M] in Gcycles, backlog [servers] in Gcycles, t the slot's number: what Cooperative LAD-TS sees

Outputs are probabilities [B, M, servers], or the q_values of DQN-TS, which takes the largest. next_latent
[B, M, servers] is what is to be remembered of tasks that are there, and memory [T, B, N, servers] what the training has
left of each slot and task number, whatever the inputs. The metadata tell, as JSON, which method, seed and scenario a
file is of: see `description`. Start reading at `export_policy`.
"""

import contextlib
import dataclasses
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from common.parameters import ParameterError
from common.run_folder import half_name, made, replace_file
from lad_ts.environment_lad import EnvironmentParameters, Scenario

PRODUCER = "DEdgeAI"
LARGEST_FILE = 2**31 - 2**20  # bytes of weights; what ONNX keeps in one file ends at 2 GiB


@dataclasses.dataclass(frozen=True)
class ExportedPolicy:
    """The policy of the first training seed as a function of tensors.

    compute(theta, *inputs) gives a tuple of the outputs, theta being the weights. `inputs` has the shape of each input;
    a dimension with a name may have any length, and an input without dimensions is a whole number. `facts` are
    told to the user of the file: texts, numbers, and lists of them. `memory` [T, B, N, servers] holds the latents that
    the training has left.
    """

    compute: Callable[..., tuple[torch.Tensor, ...]]
    theta: torch.Tensor
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: tuple[str, ...]
    facts: Mapping[str, Any]
    memory: torch.Tensor | None = None


class Graph(torch.nn.Module):
    """A policy in the form that torch exports."""

    theta: torch.Tensor
    memory: torch.Tensor | None

    def __init__(self, policy: ExportedPolicy) -> None:
        super().__init__()
        self.compute = policy.compute
        self.register_buffer("theta", policy.theta.detach().clone())
        self.register_buffer("memory", None if policy.memory is None else policy.memory.detach().clone())

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.compute(self.theta, *inputs)
        return outputs if self.memory is None else (*outputs, self.memory)


def exported_place(file: str | None, learner: Any, scenario: Scenario) -> Path | None:
    """Where the learner's policy is to be written, None without a file.

    `scenario` has a row for each seed. Raises ParameterError of --export for a place that cannot be written, for
    missing packages, and for a learner without a policy.
    """
    if file is None:
        return None
    path = checked_place(file)
    policy_of(learner, scenario, file)
    return path


def export_policy(
    path: Path, learner: Any, scenario: Scenario, config: EnvironmentParameters, key: str, seeds: list[int]
) -> str:
    """Write the learner's policy of its first seed, and tell so. `key` is the method's. Raises ParameterError."""
    policy = policy_of(learner, scenario, str(path))
    content = onnx_bytes(policy, description(policy, scenario, config, key, seeds[0]))
    replace_file(path, lambda temporary: temporary.write_bytes(content))
    others = f", the first of {len(seeds)}" if len(seeds) > 1 else ""
    return f"policy of seed {seeds[0]}{others} in {path}"


def checked_place(file: str) -> Path:
    """The path of an ONNX file that can be written. Raises ParameterError of --export."""
    path = Path(file)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401  torch writes ONNX by it
    except ImportError as error:
        words = f"needs the package {error.name or error}: pip install -r requirements-rl.txt"
        raise ParameterError("export", file, words) from None
    if path.suffix != ".onnx":
        raise ParameterError("export", file, "must be a file whose name ends with .onnx")
    made(path.parent, "export")
    try:
        if path.exists() and not written_here(path):
            raise ParameterError("export", file, "must be a new file, or one that --export has written")
        trial = half_name(path)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ParameterError("export", file, f"must be a file that can be written ({error.strerror})") from None
    return path


def written_here(path: Path) -> bool:
    """Whether a file is one that --export has written."""
    import onnx

    try:
        return path.is_file() and onnx.load(path, load_external_data=False).producer_name == PRODUCER
    except Exception:  # of protobuf, for files of all other kinds
        return False


def policy_of(learner: Any, scenario: Scenario, file: str) -> ExportedPolicy:
    """The learner's policy. Raises ParameterError of --export when it has none that fits a file."""
    try:
        policy = learner.policy(scenario)
        size = policy.theta.nbytes + (0 if policy.memory is None else policy.memory.nbytes)
        if size > LARGEST_FILE:
            raise ValueError(f"networks and memory of {size / 2**20:.0f} MiB are more than an ONNX file of 2 GiB holds")
    except (NotImplementedError, ValueError) as error:
        raise ParameterError("export", file, f"must be left out: {error}") from None
    return policy


def description(
    policy: ExportedPolicy, scenario: Scenario, config: EnvironmentParameters, key: str, seed: int
) -> dict[str, Any]:
    """What the metadata of a file say: method, seed, capacities in Gcycles/s, environment, and the policy's facts."""
    environment = {field.name: getattr(config, field.name) for field in dataclasses.fields(EnvironmentParameters)}
    facts = {"method": key, "seed": seed, "num_bs": config.num_bs, "capacity": scenario.capacity[0].tolist()}
    return facts | dict(policy.facts) | {"environment": environment}


def onnx_bytes(policy: ExportedPolicy, facts: Mapping[str, Any]) -> bytes:
    """The content of an ONNX file with the policy; `facts` become its metadata, as JSON."""
    device = policy.theta.device
    examples = tuple(example(shape, device) for shape in policy.inputs.values())
    lengths = tuple(
        {axis: name for axis, name in enumerate(shape) if isinstance(name, str)} for shape in policy.inputs.values()
    )
    with quiet():
        program = torch.onnx.export(
            Graph(policy).eval(),
            examples,
            dynamo=True,
            verbose=False,
            input_names=list(policy.inputs),
            output_names=[*policy.outputs, *(["memory"] if policy.memory is not None else [])],
            dynamic_shapes=(lengths,),
        )
    assert program is not None
    model = program.model_proto
    model.producer_name, model.producer_version = PRODUCER, ""
    model.doc_string = (__doc__ or "").rpartition(" Start reading")[0]
    for name, value in facts.items():
        model.metadata_props.add(key=name, value=json.dumps(value))
    return model.SerializeToString()


def example(shape: tuple[int | str, ...], device: torch.device) -> torch.Tensor:
    """An input of the shape, with named dimensions of some length."""
    if not shape:
        return torch.tensor(0, device=device)
    return torch.rand([3 + k if isinstance(length, str) else length for k, length in enumerate(shape)], device=device)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to itself what torch tells its developers while it exports."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
