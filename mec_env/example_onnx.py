"""An episode by onnxruntime, with a policy that --export has written, beside Opt-TS on the same arrivals.

python lad_ts/main_lad.py --export policy.onnx
python mec_env/example_onnx.py --policy policy.onnx
"""

import common.quiet_start  # noqa: F401

import dataclasses
import json
from typing import Any

import numpy as np

from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter, resolve
from common.random_streams import Stream
from lad_ts.environment_lad import CollaborativeMEC, EnvironmentParameters, Slot, draw_arrivals, draw_scenario
from lad_ts.episodes import run_episode
from lad_ts.observation import Scales, observe
from lad_ts.references import OptTS
from lad_ts.scheduler import Scheduler


@dataclasses.dataclass(kw_only=True)
class ExampleConfig(Parameters):
    """Every parameter of example_onnx.py."""

    policy: str = parameter("policy.onnx", "file that --export of a training has written", path=True)


class OnnxPolicy(Scheduler):
    """Decides with a file of any method, in one row. Raises ParameterError when it is none of --export's."""

    def __init__(self, file: str) -> None:
        try:
            import onnxruntime
        except ImportError:
            words = "needs the package onnxruntime: pip install -r requirements-rl.txt"
            raise ParameterError("policy", file, words) from None
        try:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1  # more of them spin while they wait, and keep cores from other work
            self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            told = self.session.get_modelmeta().custom_metadata_map
            self.facts = {name: json.loads(value) for name, value in told.items()}
            if not {"environment", "seed", "method"} <= self.facts.keys():
                raise ValueError("other metadata")
        except Exception as error:  # onnxruntime has an exception of its own for each kind of file
            found = str(error).splitlines()[0][:100]
            raise ParameterError("policy", file, f"must be a file that --export has written ({found})") from None
        self.inputs = {wanted.name: wanted.shape for wanted in self.session.get_inputs()}
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.latents = None  # what is remembered of all slots [T, B, N, servers]
        if "memory" in self.outputs:
            self.outputs.remove("memory")
            zeros = {name: np.zeros(self.shape(name, 1), "int64" if name == "t" else "f4") for name in self.inputs}
            self.latents = self.session.run(["memory"], zeros)[0].copy()

    def shape(self, name: str, tasks: int) -> list[int]:
        """The shape of an input for so many tasks of each BS."""
        return [tasks if length == "tasks" else length for length in self.inputs[name]]

    def act(self, slot: Slot) -> np.ndarray:
        known = {"workload": slot.workload[0].float().numpy(), "backlog": slot.backlog[0].float().numpy()}
        known |= {"t": np.array(slot.t)}
        if "kind" in self.facts:
            scales = Scales(self.facts["size_scale"], self.facts["workload_scale"])
            known["observation"] = observe(slot, self.scenario, self.facts["kind"], scales)[0].numpy()
        if self.latents is not None:
            known["latent"] = self.latents[slot.t]
        if "noise" in self.inputs:
            shape = self.shape("noise", slot.mask.shape[2])
            known["noise"] = self.random[0].standard_normal(shape, dtype=np.float32)
        values = self.session.run(self.outputs, {name: known[name] for name in self.inputs})
        found = dict(zip(self.outputs, values, strict=True))
        if self.latents is not None:
            there = slot.mask[0, :, :, None].numpy()
            self.latents[slot.t] = np.where(there, found["next_latent"], known["latent"])
        if "q_values" in found:
            return found["q_values"].argmax(-1)[None]
        level = found["probabilities"].cumsum(-1)
        return (level <= self.uniform(*level.shape[:2], 1) * level[..., -1:]).sum(-1)


def main(config: ExampleConfig, given: dict[str, Any]) -> None:
    policy = OnnxPolicy(config.policy)
    setting = resolve(EnvironmentParameters, policy.facts["environment"])
    rows = [(policy.facts["seed"], 0)]
    env = CollaborativeMEC(draw_scenario(setting, [policy.facts["seed"]]), slot_length=setting.slot_length)
    arrivals = draw_arrivals(setting, rows, Stream.HELD_OUT_ARRIVALS)
    for name, scheduler in ((policy.facts["method"], policy), ("opt_ts", OptTS())):
        print(f"{name}: mean delay {run_episode(env, scheduler, arrivals, rows).mean[0]:.3f} s")


if __name__ == "__main__":
    command_line(ExampleConfig, main, __doc__)
