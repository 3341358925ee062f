"""The registry: every method by the key that users pick it by. A new method is one more entry here.

Comparison, sweep, study, the edge system and the page of parameters take their methods from here. Start reading at
`METHODS`.
"""

from typing import Any

from baselines import model_d2sac, model_dqn, model_sac
from baselines.own import FORM, OwnConfig, own_class, own_file, own_learner
from baselines.rules import RULES, HeuristicConfig, rule
from common.parameters import ParameterError, Parameters
from coop_lad_ts import model_coop
from lad_ts import model_lad, training
from lad_ts.method import Method, Variant
from lad_ts.references import OptTS
from lad_ts.result import Result
from lad_ts.run_parameters import FixedParameters

OPT_TS = Method("opt_ts", "Opt-TS", FixedParameters, OptTS, "baselines/main_opt.py")
METHODS: dict[str, Method] = {
    method.key: method
    for method in (
        model_lad.METHOD,
        model_d2sac.METHOD,
        model_sac.METHOD,
        model_dqn.METHOD,
        model_coop.METHOD,
        OPT_TS,
        *(rule(name) for name in RULES),
    )
}


def default_methods() -> list[str]:
    """What is compared by default: methods that learn, one variant after the other, then the others."""
    compared = [method for method in METHODS.values() if method.compared]
    variants = dict.fromkeys(name for method in compared for name in method.variants)
    learning = [f"{m.key}:{name}" for name in variants for m in compared if name in m.variants]
    return [*learning, *(method.key for method in compared if not method.variants)]


def full_name(name: str) -> str:
    """A method's name with its variant: the default one where none is named, as in lad_ts:tuned for lad_ts.

    Raises ParameterError for a file of the user's own that fails.
    """
    if name not in METHODS and not own_file(name):
        return name
    method, variant = split(name, "methods")
    return f"{name}:{next(iter(method.variants))}" if method.variants and not variant else name


def choose(name: str, flag: str = "methods") -> tuple[Method, Variant | None]:
    """The method, and the variant, of a name such as lad_ts, lad_ts:paper, water_filling, or FILE.py:ClassName.

    A method with variants has its default one where none is named. Raises ParameterError of `flag` when there is none.
    """
    method, variant = split(full_name(name), flag)
    return method, method.variants[variant] if variant else None


def split(name: str, flag: str) -> tuple[Method, str]:
    """The method of a name, and the variant behind it, empty where none is. Raises ParameterError of `flag`."""
    if file := own_file(name):
        cls, _, variant = name.removeprefix(f"{file}:").partition(":")
        method = own_method(f"{file}:{cls}", flag)
        allowed = f"must be {FORM}{''.join(f', or with :{word}' for word in method.variants)}"
    else:
        key, _, variant = name.partition(":")
        named = (f"{m.key} with :{', :'.join(m.variants)}" for m in METHODS.values() if m.variants)
        allowed = f"must be one of {', '.join(METHODS)}; {'; '.join(named)}; or {FORM}"
        if key not in METHODS:
            raise ParameterError(flag, name, allowed)
        method = METHODS[key]
    if variant not in ("", *method.variants) or name.endswith(":"):
        raise ParameterError(flag, name, allowed)
    return method, variant


def own_method(place: str, flag: str) -> Method:
    """The method of a user's class FILE.py:ClassName, whether it learns or not. Raises ParameterError of `flag`."""
    return (own_learner if own_class(place, flag)[0].learns else rule)(place, flag)


def method_of(config: Parameters) -> Method:
    """The method whose script has parameters like `config`. Raises ParameterError when there is none."""
    if isinstance(config, HeuristicConfig):
        return rule(config.method)
    if isinstance(config, OwnConfig) and config.method is not None:
        return own_learner(config.method)
    for method in METHODS.values():
        if type(config) is method.parameters:
            return method
    allowed = ", ".join(sorted({method.parameters.__name__ for method in METHODS.values()}))
    raise ParameterError(None, None, f"{type(config).__name__} is no method's parameters; must be one of {allowed}")


def train(config: Any, progress: bool = True) -> Result:
    """Run the method of `config` from Python, learning or not: what its script does, without its words and exits.

    `progress` says whether to show a bar. lad_ts.training.train tells the rest, and takes methods of your own.
    """
    return training.train(config, method_of(config), progress)
