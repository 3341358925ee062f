"""The page of results: what it shows, the commands that it reconstructs, and what it leaves out."""

import dataclasses
import json
import shlex
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers import make, refusal, run_here
from PIL import Image
from scripts_by_path import load

from baselines import main_heuristics
from baselines.rules import HeuristicConfig
from common.command_line import command_line, parse
from common.entry_scripts import read_script
from common.parameters import resolve
from experiments.commands import FolderError, command_behind, command_words, differing
from lad_ts.model_lad import LadConfig

report = load("report")


class Page(HTMLParser):
    """A page's links, anchors, tags, and the texts of some tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.folder, self.links, self.anchors, self.tags, self.stack = path.parent, [], set(), set(), []
        self.texts: dict[str, list[str]] = {}
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.add(tag)
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.anchors |= {found["id"]} if "id" in found else set()
        if tag in ("pre", "h2", "h3", "h4", "li", "td", "p", "q"):
            self.stack.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        if self.stack and tag == self.stack[-1]:
            self.stack.pop()

    def handle_data(self, data):
        if self.stack:
            self.texts[self.stack[-1]][-1] += data

    def check_links(self) -> None:
        assert self.links
        for link in self.links:
            if link.startswith("#"):
                assert link[1:] in self.anchors, link
            else:
                assert ":" not in link.split("/")[0] and (self.folder / unquote(link)).exists(), link


def write_run(folder: Path, label: str, config, **summary) -> None:
    """The files of a run, as far as the page reads them."""
    folder.mkdir(parents=True)
    record = {"method": label, "parameters": dataclasses.asdict(config), "versions": {}}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "delay.csv").write_text("seed,episode,delay_s\n" + "".join(f"0,{k},{8 + k / 7}\n" for k in range(40)))
    Image.new("RGB", (300, 200), "white").save(folder / "delay.png")
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))


def page_of(results: Path, *arguments) -> Page:
    run_here(report, "--results", results, *arguments)
    return Page(results / "index.html")


def test_a_run_is_shown_with_command_figure_table_delay_time_and_memory(tmp_path):
    config = make(LadConfig, episodes=40, seeds=2, preset="paper", capacities="10,20,30", num_bs=3, noise_softmax=False)
    summary = {"episodes": 40, "averaged_episodes": 20, "seconds": 300.0, "peak_memory_mib": 301.2}
    write_run(tmp_path / "lad_ts/one", "LAD-TS (paper)", config, **summary, delay_s=8.0, opt_delay_s=10.0)
    page = page_of(tmp_path)
    page.check_links()
    (command,) = page.texts["pre"]
    words = shlex.split(command)
    assert words[:2] == ["python", "lad_ts/main_lad.py"]
    flags = dict(zip(words[2::2], words[3::2], strict=True))
    given = {"--episodes": "40", "--seeds": "2", "--preset": "paper", "--num_bs": "3", "--capacities": "10,20,30"}
    assert flags == given | {"--noise_softmax": "False"}
    assert page.texts["h3"] == ["LAD-TS (paper): 40 episodes, 2 seeds from 0 on"]
    facts = " ".join(page.texts["p"])
    assert "mean delay 8.00 s, Opt-TS 10.00 s (-20.0%), over the last 20 of 40 episodes" in facts
    assert "time 5.0 min, peak memory 301 MiB" in facts
    assert page.texts["td"][:3] == ["0", "0", "8.0"] and page.texts["td"][5] == "8.1429"  # shortened
    assert len(page.texts["td"]) == 3 * 12 and "12 of 40 rows" in (tmp_path / "index.html").read_text()
    assert {"script", "link", "iframe"}.isdisjoint(page.tags)  # readable without a network
    assert list(tmp_path.glob(".*")) == []  # nothing half written


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("lad_ts/main_lad.py", ["--preset=paper", "--actor_lr=1e-05", "--target_entropy=-2", "--tied_sizes=False"]),
        ("coop_lad_ts/main_coop.py", ["--objective=tail", "--tail_threshold=2.5", "--coordinated=False"]),
        ("baselines/main_dqn.py", ["--seed=7", "--epsilon=0.123456789"]),
        ("meg/test_MEG.py", ["--preset=published", "--snr_db=-20,-5", "--noise_dbm_hz=-170.5"]),
        ("resd3_medium/refine_sd3_infer.py", ["--prompt=a 'b' $c", "--prompt=--d", "--negative_prompt=", "--seed=3"]),
        ("scripts/train_pocket.py", []),
    ],
)
def test_a_command_gives_the_parameters_that_it_was_told_from(script, arguments):
    cls = read_script(script).parameters
    before = resolve(cls, parse(cls, arguments, "", script))
    stored = json.loads(json.dumps(dataclasses.asdict(before)))
    words = shlex.split(command_words(script, differing(cls, stored)))
    assert words[:2] == ["python", script]
    assert resolve(cls, parse(cls, words[2:], "", script)) == before
    names = [argument.split("=")[0] for argument in arguments]
    assert sorted({word.split("=")[0] for word in words if word.startswith("--")} - {*names}) == []


def test_the_shown_command_gives_the_same_numbers_again(tmp_path):
    def run(*arguments):
        command_line(HeuristicConfig, main_heuristics.main, "", [str(argument) for argument in arguments])

    flags = ["--episodes=2", "--num_bs=4", "--num_slots=5", "--num_tasks=3", "--method=shortest_queue"]
    run(*flags, "--out", tmp_path / "results/first")
    (command,) = page_of(tmp_path / "results").texts["pre"]
    words = shlex.split(command)
    assert words[1] == "baselines/main_heuristics.py"
    run(*words[2:], "--out", tmp_path / "again")
    first, again = (tmp_path / place / "delay.csv" for place in ("results/first", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_what_is_broken_unfinished_or_foreign_is_left_out_and_named(tmp_path):
    write_run(tmp_path / "good", "LAD-TS (tuned)", make(LadConfig, episodes=1), episodes=1)
    write_run(tmp_path / "unfinished", "LAD-TS (tuned)", make(LadConfig, episodes=1))
    for name, content in (("cut", '{"method": "LAD'), ("list", "[]"), ("types", '{"method": 3, "parameters": {}}')):
        write_run(tmp_path / name, "x", make(LadConfig), episodes=1)
        (tmp_path / name / "config.json").write_text(content)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/todo.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/table.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "other/plot.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (tmp_path / "sweep_x/runs").mkdir(parents=True)
    (tmp_path / "sweep_x/sweep.csv").write_text("one,two\n1,2\n")
    page = page_of(tmp_path)
    page.check_links()
    assert page.texts["h3"] == ["LAD-TS (tuned): 1 episodes, seed 0", "other"]
    assert sum("command unknown" in text for text in page.texts["p"]) == 1  # other
    left = [text.partition(": ") for text in page.texts["li"] if text.startswith(str(tmp_path))]
    reasons = {Path(path).name: why for path, _, why in left}
    assert set(reasons) == {"unfinished", "cut", "list", "types", "notes", "sweep_x"}
    assert "no summary.json" in reasons["unfinished"] and reasons["notes"] == "no figure and no table"
    assert all("config.json cannot be read" in reasons[name] for name in ("cut", "list", "types"))
    unread = [text for text in page.texts["p"] if "cannot be shown" in text]
    assert sorted(text.split()[0] for text in unread) == ["plot.png", "table.csv"]


def test_files_in_folders_below_a_run_belong_to_it(tmp_path):
    config = make(read_script("dedgeai/main_dedgeai.py").parameters, simulate=True, num_tasks="5,7")
    for count in (5, 7):
        (tmp_path / f"edge/{count}").mkdir(parents=True)
        (tmp_path / f"edge/{count}/summary.csv").write_text(f"quantity,value\ntasks,{count}\n")
    record = {"method": "dedgeai, simulated, lad_ts", "parameters": dataclasses.asdict(config)}
    (tmp_path / "edge/config.json").write_text(json.dumps(record))
    page = page_of(tmp_path)
    page.check_links()
    assert page.texts["h2"] == ["Edge system"] and page.texts["h3"] == ["dedgeai, simulated, lad_ts"]
    assert page.texts["pre"] == ["python dedgeai/main_dedgeai.py --simulate True --num_tasks 5,7"]
    assert page.texts["td"] == ["tasks", "5", "tasks", "7"]
    assert [text for text in page.texts["p"] if "row" in text] == ["5/summary.csv: 1 row", "7/summary.csv: 1 row"]


def test_texts_of_files_are_escaped(tmp_path):
    folder = tmp_path / "a&b <i> #1?%20"
    folder.mkdir()
    (folder / "t.csv").write_text("<script>alert(1)</script>,b\n<b>x</b>,&amp;\n")
    (folder / "m.md").write_text("# <script>\n\n| <b> | y |\n| --- | --- |\n| 1 | a\\|b |\n\n`<code>` & more\n")
    Image.new("RGB", (4, 4)).save(folder / '"onload=x.png')
    write_run(tmp_path / "run", "<script>alert(2)</script>", make(LadConfig), episodes=1)
    page = page_of(tmp_path)
    page.check_links()
    assert {"script", "b", "i"}.isdisjoint(page.tags)
    assert page.texts["h3"] == ["a&b <i> #1?%20", "<script>alert(2)</script>"]
    assert "<b>x</b>" in page.texts["td"] and "&amp;" in page.texts["td"]


def test_a_comparison_and_a_sweep_have_the_command_that_their_runs_tell(tmp_path):
    plain, both = tmp_path / "comparison", {"episodes": 4, "seeds": 2}
    write_run(plain / "runs/lad_ts_paper", "LAD-TS (paper)", make(LadConfig, preset="paper", **both), episodes=4)
    rule = make(HeuristicConfig, method="local_only", **both)
    write_run(plain / "runs/local_only", "local only", rule, episodes=4)
    for name in ("comparison.png", "sweep.png"):
        Image.new("RGB", (9, 9)).save(plain / name)
    (plain / "table.csv").write_text("method,delay s\nLAD-TS (paper),8.1\n")
    (plain / "table.md").write_text("| method | delay s |\n| --- | --- |\n| LAD-TS (paper) | 8.1 |\n")
    words = "python scripts/reproduce.py --episodes 4 --seeds 2 --methods lad_ts:paper,local_only"
    assert command_behind(plain).command == words
    swept = tmp_path / "sweep_num_bs"
    write_run(swept / "runs/opt_ts_5", "Opt-TS", make(HeuristicConfig, num_bs=5, episodes=3), episodes=3)
    rows = "".join(f"opt_ts,{value},0,1.5,1.5\n" for value in (5, 2.5))
    (swept / "sweep.csv").write_text("method,num_bs,seed,delay_s,opt_delay_s\n" + rows)
    words = "python scripts/sweep.py --vary num_bs --values 5,2.5 --methods opt_ts --episodes 3 --seeds 1"
    assert command_behind(swept).command == words
    page = page_of(tmp_path)
    page.check_links()
    assert page.texts["h2"] == ["Comparison of methods", "Sweeps"] and len(page.texts["h4"]) == 3  # runs are folded
    assert page.texts["td"].count("8.1") == 1  # the table once, though it lies there twice
    odd = make(HeuristicConfig, method="local_only", num_slots=7, **both)
    write_run(plain / "runs/uniform_random", "uniform random", odd, episodes=4)
    assert command_behind(plain).command == ""  # no command of reproduce.py makes such runs


def test_an_evaluation_names_the_checkpoint_beside_it(tmp_path):
    config = make(LadConfig, episodes=3, evaluation_episodes=5)
    write_run(tmp_path / "run/evaluation_sample", "LAD-TS (tuned), evaluation", config, episodes=5)
    assert command_behind(tmp_path / "run/evaluation_sample").command == ""
    (tmp_path / "run/checkpoint.pt").touch()
    words = shlex.split(command_behind(tmp_path / "run/evaluation_sample").command)
    assert words[1:3] == ["lad_ts/main_lad.py", "--evaluate"] and Path(words[3]) == tmp_path / "run/checkpoint.pt"
    assert words[4:] == ["--evaluation_episodes", "5"]


def test_an_image_has_its_prompt_and_the_command_that_makes_it_again(tmp_path):
    source = Path(__file__).parent / "data/two_blue_rockets.png"
    images = tmp_path / "images"
    images.mkdir()
    header = "image,prompt,negative_prompt,steps,seed"
    (images / "tasks.csv").write_text(f"{header}\n0001.png,two blue rockets,,20,0\n")
    (images / "0001.png").write_bytes(source.read_bytes())
    page = page_of(tmp_path)
    page.check_links()
    assert page.texts["h2"] == ["Images"] and page.texts["q"] == ["two blue rockets"]
    words = shlex.split(page.texts["pre"][0])
    assert words[1:3] == ["resd3_medium/refine_sd3_infer.py", "--from_image"]
    assert Path(words[3]) == images / "0001.png"


def test_the_gallery_is_shown_where_nothing_else_is(tmp_path):
    (tmp_path / "gallery").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "gallery/figure.png")
    assert page_of(tmp_path).texts["h3"] == ["Gallery"]
    write_run(tmp_path / "run", "Opt-TS", make(HeuristicConfig, episodes=1), episodes=1)
    assert page_of(tmp_path).texts["h3"] == ["Opt-TS: 1 episodes, seed 0"]


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
    page = page_of(tmp_path)
    assert "There is nothing here yet." in " ".join(page.texts["p"]) and "h2" not in page.texts


def test_the_page_may_lie_elsewhere_and_is_the_same_when_written_again(tmp_path):
    write_run(tmp_path / "results/run", "Opt-TS", make(HeuristicConfig, episodes=1), episodes=1)
    page = tmp_path / "pages/deep/all.html"
    run_here(report, "--results", tmp_path / "results", "--out", page)
    Page(page).check_links()
    before = page.read_bytes()
    run_here(report, "--results", tmp_path / "results", "--out", page)
    assert page.read_bytes() == before and not (tmp_path / "results/index.html").exists()


def test_mistakes_are_told_in_one_line(tmp_path, capsys):
    line = refusal(capsys, report, "--results", tmp_path / "none")
    assert line == f"error: --results={tmp_path / 'none'}: must be a folder"
    assert "--out=" in refusal(capsys, report, "--results", tmp_path, "--out", tmp_path)


def test_a_broken_table_of_a_sweep_is_refused(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "sweep.csv").write_text("")
    with pytest.raises(FolderError, match="other columns"):
        command_behind(tmp_path)
