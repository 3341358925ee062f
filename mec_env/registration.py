"""Importing this module registers the named scenarios with Gymnasium, as its users expect of an environment's package.

DEdgeAI/<Kind>-<scenario>-v0 with the kinds Central, CentralSlot and Station, as in
gymnasium.make("mec_env.registration:DEdgeAI/Central-light-v0"). DEdgeAI/Trace-v0 is the trace's world.
"""

import gymnasium

from lad_ts.scenarios import SCENARIOS

KINDS = {
    "Central": ("mec_env.gymnasium_env:CentralEnv", {"per": "task"}),
    "CentralSlot": ("mec_env.gymnasium_env:CentralEnv", {"per": "bs"}),
    "Station": ("mec_env.gymnasium_env:StationEnv", {}),
}


def register() -> list[str]:
    """Register every kind in every named scenario and the trace's world, once. Returns the names."""
    names = ["DEdgeAI/Trace-v0"]
    if names[0] not in gymnasium.registry:
        gymnasium.register(names[0], entry_point="mec_env.trace_gymnasium:TraceEnv")
    for scenario in SCENARIOS:
        for kind, (place, given) in KINDS.items():
            names.append(f"DEdgeAI/{kind}-{scenario}-v0")
            if names[-1] not in gymnasium.registry:
                vector = "mec_env.gymnasium_vector:MECVectorEnv" if kind.startswith("Central") else None
                arguments = {"scenario": scenario} | given
                gymnasium.register(names[-1], entry_point=place, vector_entry_point=vector, kwargs=arguments)
    return names


register()
