"""The project's scripts: files that end with `command_line(Class, main, ..)`, which are found, not listed.

Start reading at `find_scripts`.
"""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from common.command_line import ROOT
from common.parameters import Parameters


@dataclasses.dataclass(frozen=True)
class Script:
    """A script: its path below the project's folder, its parameters, and the first sentence of its docstring."""

    path: str
    parameters: type[Parameters]
    summary: str


def command_class(tree: ast.Module) -> str:
    """The class that a file gives to `command_line` when it is run, as written there; empty when there is none."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "command_line":
                    return ast.unparse(call.args[0])
    return ""


def load_module(path: Path) -> ModuleType:
    """The module of a file in a folder of the project; those in scripts/, which is no package, go by their path."""
    if path.parent.name != "scripts":
        return importlib.import_module(f"{path.parent.name}.{path.stem}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def read_script(name: str) -> Script | None:
    """The script at a path such as meg/test_MEG.py; None for a file that is none."""
    path = ROOT / name
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not (declared := command_class(tree)):
        return None
    parameters = functools.reduce(getattr, declared.split("."), load_module(path))
    assert isinstance(parameters, type) and issubclass(parameters, Parameters), f"{name}: {declared}"
    return Script(name, parameters, (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " "))


def find_scripts() -> list[Script]:
    """Every script of the project, in the order of its path."""
    names = (path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("[a-z]*/*.py")))
    found = [read_script(name) for name in names if not name.startswith("tests/")]
    return [script for script in found if script is not None]
