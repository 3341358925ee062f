"""Write docs/parameters.md: every parameter of every script, from the parameters' own declarations.

A script is a Python file that ends with `command_line(Class, main, ..)`; they are found, not listed. The scripts of
methods share one table, every other script has a section. Example: python scripts/parameter_table.py --verify True
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any

from baselines.methods import METHODS
from baselines.own import LEARNERS_SCRIPT
from common.command_line import command_line, groups
from common.entry_scripts import ROOT, Script, find_scripts
from common.failure import fail
from common.parameters import Parameters, allowed_values, parameter
from common.run_folder import write_text

PAGE = ROOT / "docs" / "parameters.md"
INTRODUCTION = """# Parameters

Every parameter of every script, as `python scripts/parameter_table.py` writes them from their declarations.
`--help` of a script says the same in short.
A parameter is given as `--seeds 2` or as `--seeds=2`.
Ranges include their ends, unless they say *above*.
Unknown parameters, wrong types and values out of range end with exit code 2 and one line.
*By preset* stands before defaults that `--preset` fills in.
"""
METHODS_TEXT = """## Methods

The scripts that run one [method](methods.md) each share most parameters.
The last column names the scripts that take a parameter:
"""


@dataclasses.dataclass(kw_only=True)
class TableConfig(Parameters):
    """Every parameter of parameter_table.py."""

    out: str = parameter(str(PAGE), "file of the page", path=True)
    verify: bool = parameter(False, "write nothing, and end with exit code 1 when the file differs")


def short(script: Script) -> str:
    """The name of a method's script in a table, as `lad` for main_lad.py."""
    return Path(script.path).stem.removeprefix("main_")


def value_words(value: Any) -> str:
    """A default in words; paths of the project without the folder that it lies in."""
    if value is None or value in ((), ""):
        return "none"
    return str(value).replace(f"{ROOT}/", "")


def default_words(parameters: type[Parameters], name: str) -> str:
    """The default of a parameter; for one that the presets fill in, what each preset gives."""
    default = parameters.__dataclass_fields__[name].default
    presets = {preset: value_words(values.get(name, default)) for preset, values in parameters.PRESETS.items()}
    if len(set(presets.values())) > 1:
        return "by preset: " + ", ".join(f"{preset} {word}" for preset, word in sorted(presets.items(), reverse=True))
    return next(iter(presets.values()), value_words(default))


def shared_default(scripts: list[Script], name: str) -> str:
    """The default that most of the scripts have, and the others' by script."""
    by_word: dict[str, list[str]] = {}
    for script in scripts:
        by_word.setdefault(default_words(script.parameters, name), []).append(short(script))
    most = max(by_word, key=lambda word: len(by_word[word]))
    return "; ".join([most, *(f"{', '.join(names)}: {word}" for word, names in by_word.items() if word != most)])


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, with signs escaped that would mean something there."""
    lines = [header, ["---"] * len(header)]
    lines += [[cell.replace("|", r"\|").replace("<", r"\<").replace("*", r"\*") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(scripts: list[Script]) -> str:
    """One table for each group of parameters; with a column of users when there are several scripts."""
    users: dict[tuple[str, ...], list[Script]] = {}
    for script in scripts:
        for title, fields in groups(script.parameters).items():
            for field in fields:
                meta = field.metadata
                more = f" {meta['more']}" if meta["more"] else ""
                text = f"{meta['text']}.{more}" if more else meta["text"]
                row = (title, field.name, text, meta["unit"], allowed_values(script.parameters, field))
                users.setdefault(row, []).append(script)
    by_group: dict[str, list[list[str]]] = {}
    for (title, name, *cells), takers in users.items():
        row = [f"`--{name}`", *cells, shared_default(takers, name)]
        if len(scripts) > 1:
            row.append("all" if len(takers) == len(scripts) else ", ".join(short(script) for script in takers))
        by_group.setdefault(title, []).append(row)
    header = ["parameter", "what it is", "unit", "allowed", "default", *(["scripts"] if len(scripts) > 1 else [])]
    parts = []
    for title, rows in by_group.items():
        heading = f"**{title.capitalize()}**\n\n" if len(by_group) > 1 else ""
        parts.append(heading + table(header, rows))
    return "\n".join(parts)


def page() -> str:
    """The whole page."""
    scripts = find_scripts()
    paths = [*(method.script for method in METHODS.values()), LEARNERS_SCRIPT]
    of_methods = {path: k for k, path in enumerate(dict.fromkeys(paths))}
    shared = sorted((script for script in scripts if script.path in of_methods), key=lambda s: of_methods[s.path])
    names = "\n".join(f"- {short(script)}: `{script.path}`" for script in shared)
    parts = [INTRODUCTION, METHODS_TEXT, f"{names}\n", tables(shared)]
    for script in scripts:
        if script not in shared:
            parts += [f"## `{script.path}`\n", f"{script.summary}\n", tables([script])]
    return "\n".join(parts)


def main(config: TableConfig, given: dict[str, Any]) -> None:
    out = Path(config.out)
    if not config.verify:
        write_text(out, page())
        print(f"parameters in {out}")
    elif not out.is_file() or out.read_text(encoding="utf-8") != page():
        fail(f"{out} differs from the declarations; python scripts/parameter_table.py writes it", 1)


if __name__ == "__main__":
    command_line(TableConfig, main, __doc__)
