"""Print the README's table of every parameter of the scheduling scripts, from the parameters' own declarations."""

import dataclasses
from typing import Any

from baselines.main_d2sac import D2SACConfig
from baselines.main_dqn import DQNConfig
from baselines.main_heuristics import HeuristicConfig
from baselines.main_sac import SACConfig
from common.command_line import command_line
from common.parameters import Parameters, allowed_values
from coop_lad_ts.main_coop import CoopConfig
from lad_ts.main_lad import LadConfig
from lad_ts.training import FixedParameters

SCRIPTS = {
    "lad": LadConfig,
    "sac": SACConfig,
    "d2sac": D2SACConfig,
    "dqn": DQNConfig,
    "coop": CoopConfig,
    "opt": FixedParameters,
    "heuristics": HeuristicConfig,
}


def default_words(scripts: list[str], name: str) -> str:
    """The default of a parameter; for one that the presets fill in, what each preset gives."""
    words = []
    for script in scripts:
        config = SCRIPTS[script]
        default = config.__dataclass_fields__[name].default
        presets = {preset: values.get(name, default) for preset, values in config.PRESETS.items()}
        if len(set(presets.values())) > 1:
            words.append(", ".join(f"{preset}: {value}" for preset, value in sorted(presets.items(), reverse=True)))
        else:
            value = next(iter(presets.values()), default)
            words.append("none" if value is None else str(value))
    groups: dict[str, list[str]] = {}
    for script, word in zip(scripts, words, strict=True):
        groups.setdefault(word, []).append(script)
    most = max(groups, key=lambda word: len(groups[word]))  # stands without names
    others = [f"{', '.join(names)}: {word}" for word, names in groups.items() if word != most]
    return "; ".join([most, *others])


def main(config: Parameters, given: dict[str, Any]) -> None:
    rows: dict[str, list[str]] = {}
    for script, parameters in SCRIPTS.items():
        for field in dataclasses.fields(parameters):
            rows.setdefault(field.name, []).append(script)
    print("| parameter | what it is | unit | allowed | default | scripts |\n|---|---|---|---|---|---|")
    for name, scripts in rows.items():
        parameters = SCRIPTS[scripts[0]]
        field = parameters.__dataclass_fields__[name]
        users = "all" if len(scripts) == len(SCRIPTS) else ", ".join(scripts)
        cells = [f"`--{name}`", field.metadata["text"], field.metadata["unit"], allowed_values(parameters, field)]
        print("| " + " | ".join([*cells, default_words(scripts, name), users]) + " |")


if __name__ == "__main__":
    command_line(Parameters, main, __doc__)
