"""docs/parameters.md is what scripts/parameter_table.py writes, and it holds every parameter of every script."""

import dataclasses
import re
from pathlib import Path

import pytest
from helpers import refusal, run_here
from scripts_by_path import load

from baselines.methods import METHODS
from baselines.own import LEARNERS_SCRIPT
from common.entry_scripts import find_scripts

ROOT = Path(__file__).resolve().parents[1]
table = load("parameter_table")


def sections(page: str) -> dict[str, str]:
    """The page's second-level sections by their headings."""
    parts = re.split(r"^## (.*)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def with_command_line() -> set[str]:
    """Files that end with a call of `command_line`, by their text."""
    lines = {path: path.read_text().rstrip().splitlines() or [""] for path in ROOT.glob("[a-z]*/*.py")}
    found = [path for path, text in lines.items() if text[-1].startswith("    command_line(")]
    return {path.relative_to(ROOT).as_posix() for path in found if path.parent.name != "tests"}


def test_the_page_is_what_the_declarations_say():
    assert (ROOT / "docs/parameters.md").read_text() == table.page(), "python scripts/parameter_table.py writes it"


def test_every_script_with_a_command_line_and_each_parameter_of_it_is_on_the_page():
    found, page = find_scripts(), sections((ROOT / "docs/parameters.md").read_text())
    assert {script.path for script in found} == with_command_line() and len(found) > 20
    of_methods = {*(method.script for method in METHODS.values()), LEARNERS_SCRIPT}
    for script in found:
        section = page["Methods"] if script.path in of_methods else page[f"`{script.path}`"]
        assert f"`{script.path}`" in section or script.path not in of_methods
        listed = set(re.findall(r"^\| `--(\w+)` \|", section, flags=re.MULTILINE))
        names = {field.name for field in dataclasses.fields(script.parameters)}
        assert names <= listed and (script.path in of_methods or names == listed), script.path


def test_the_page_holds_no_path_of_a_machine():
    assert str(ROOT) not in table.page()


def test_rows_have_as_many_cells_as_the_header_and_signs_are_escaped():
    rows = [line for line in table.page().splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {7, 8}  # with and without the column of scripts
    assert not [row for row in rows if re.search(r"(?<!\\)<", row)]


def test_verify_tells_by_its_exit_code_whether_a_page_differs(tmp_path, capsys):
    page = tmp_path / "page.md"
    run_here(table, "--out", page)
    run_here(table, "--out", page, "--verify", "True")
    page.write_text(page.read_text().replace("`--seeds`", "`--sedes`"))
    for broken in (page, tmp_path / "none.md"):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_here(table, "--out", broken, "--verify", "True")
        assert ended.value.code == 1 and f"{broken} differs" in capsys.readouterr().err
    assert "--verify=perhaps" in refusal(capsys, table, "--verify", "perhaps")
