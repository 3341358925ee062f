"""The pages keep their word: what README.md and docs/ name is there, links resolve, commands are understood.

pages.py finds what is wrong with a page. The last tests make up pages with one mistake each, which must be found.
"""

import re
import shutil
import subprocess
import sys

import pytest
from pages import FENCE, FORM, MADE_UP, PAGES, PARTS, ROOT, command_problem, declared, problems, scripts, without_code

# --- the pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_everything_that_a_page_names_is_there(page):
    found = problems(page.read_text(), page)
    assert not found, "\n".join(found)


def test_the_readme_is_a_front_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.encode()) <= 12_000


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    missing = [page.name for page in PAGES[1:] if page.name != "index.md" and f"]({page.name})" not in index]
    assert not missing


@pytest.mark.parametrize("name", PARTS)
def test_every_page_of_a_part_has_the_same_form(name):
    text = without_code((ROOT / "docs" / f"{name}.md").read_text())
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == FORM


def test_the_page_of_parameters_has_every_parameter_of_every_script():
    page = (ROOT / "docs" / "parameters.md").read_text()
    missing = {f"{script} --{name}" for script in scripts() for name in declared(script) if f"`--{name}`" not in page}
    assert len(scripts()) >= 20
    assert not missing


def test_what_the_folder_of_the_edge_service_says_of_itself_is_so():
    page = ROOT / "dedgeai" / "README.md"
    rows = [row for row in page.read_text().splitlines() if row.startswith("| ") and ".py`" in row]
    assert len(rows) >= 18 and not problems(page.read_text(), page)
    for row in rows:
        names = re.findall(r"`([\w./]+)`", row)
        places = [ROOT / ("" if "/" in name else "dedgeai") / name for name in names if name.endswith(".py")]
        code = "".join(place.read_text() for place in places)
        for name in names:
            owner, _, method = name.rpartition(".")
            there = f"def {method}(" in code and (not owner or f"class {owner}" in code)
            assert there or name.endswith((".py", "/")), f"{name} is not in {places}"


def test_the_unit_of_systemd_is_accepted(tmp_path):
    unit = (ROOT / "docs" / "deploy" / "dedgeai.service").read_text()
    start = re.search(r"^ExecStart=(.*)$", unit.replace("\\\n", " "), re.MULTILINE)[1].split()
    assert command_problem(start[2:]) == "" and "--token_file" in start
    if shutil.which("systemd-analyze"):
        (tmp_path / "dedgeai.service").write_text(unit.replace(start[0], sys.executable))
        command = ["systemd-analyze", "verify", str(tmp_path / "dedgeai.service")]
        verdict = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (verdict.returncode, verdict.stderr) == (0, "")


def test_all_python_on_the_pages_is_python():
    blocks = [body for page in PAGES for _, language, body in FENCE.findall(page.read_text()) if language == "python"]
    assert len(blocks) >= 2
    for block in blocks:
        compile(block, "page", "exec")


def test_the_example_scheduler_runs_and_is_short(tmp_path):
    blocks = [body for _, _, body in FENCE.findall((ROOT / "docs" / "methods.md").read_text())]
    code = next(block for block in blocks if "class TwoChoices" in block)
    assert len(code.splitlines()) <= 30
    (tmp_path / "my_scheduler.py").write_text(code)
    run = [sys.executable, str(ROOT / "baselines/main_heuristics.py"), "--method", "my_scheduler.py:TwoChoices"]
    run += ["--episodes", "2", "--num_slots", "6", "--out", "run"]
    subprocess.run(run, cwd=tmp_path, check=True, capture_output=True)
    delays = [float(line.split(",")[2]) for line in (tmp_path / "run" / "delay.csv").read_text().splitlines()[1:]]
    assert len(delays) == 2
    assert min(delays) > 0


# --- mistakes are found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '[page](scheduling.md) and [part](scheduling.md#what-it-is), [front](../README.md#glossary), <a href="#top">',
        "# A `b` (c), d: [e](index.md)!\n## Twice\n## Twice\n[1](#a-b-c-d-e) [2](#twice-1) [3](https://arxiv.org)",
        "![picture](../results/gallery/comparison.png) `results/comparison/table.csv` `results/<method>/<run>/x.csv`",
        "`lad_ts/main_lad.py`, `main_lad.py`, `lad_ts/`, `my_own.py`, `GET /api/x`",
        "`--episodes 3`, `lad_ts.agents.StackedAgents`",
        "```bash\nX=1 .venv/bin/python lad_ts/main_lad.py --episodes 5 \\\n  --preset paper  # --nothing\n```",
        "`bash scripts/reproduce.sh --episodes 5 && python scripts/sweep.py --vary num_tasks`",
        "`bash scripts/test.sh -k resume`",
    ],
)
def test_a_page_without_mistakes_passes(text):
    assert problems(text + '\n<a id="top"></a>', MADE_UP) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[page](schedulings.md)", "leads nowhere"),
        ("[page](../../elsewhere.md)", "leads nowhere"),
        ("![picture](../results/gallery/comparisons.png)", "leads nowhere"),
        ('<img src="../results/gallery/none.png">', "leads nowhere"),
        ("[page](scheduling.md#what-it-was)", "no such heading"),
        ("## Twice\n[page](#twice-1)", "no such heading"),
        ("```\n# Code\n```\n[page](#code)", "no such heading"),
        ("`lad_ts/main_lads.py`", "is not there"),
        ("`lad_tss/main_lad.py`", "is not there"),
        ("`main_lads.py`", "no file is called"),
        ("`results/gallery/none.png`", "is not there"),
        ("`lad_ts.agents.StackedAgent`", "has no StackedAgent"),
        ("`lad_ts.agent.StackedAgents`", "is no module"),
        ("`--episode 5`", "no script has a parameter"),
        ("`python lad_ts/main_lads.py`", "script lad_ts/main_lads.py is not there"),
        ("`python lad_ts/main_lad.py --epsilon 1`", "has no parameter --epsilon"),
        ("```bash\npython lad_ts/main_lad.py \\\n  --memory x1\n```", "is none of x0"),
        ("```bash\npython lad_ts/main_lad.py --memory=x1\n```", "is none of x0"),
        ("```bash\ncd x && bash scripts/reproduce.sh --steps 5\n```", "has no parameter --steps"),
        ("```bash\nbash scripts/test.sh --fast\n```", "has no parameter --fast"),
        ("still TODO", "TODO"),
    ],
)
def test_a_mistake_on_a_page_is_found(text, words):
    found = problems(text, MADE_UP)
    assert found
    assert words in " ".join(found)
