"""The edge system's schedulers and its command line, without Ray: the registry, learning, checkpoints, mistakes."""

import json

import numpy as np
import pytest
from edge_helpers import ready
from helpers import refusal, run_here

from baselines.heuristics import LocalOnly
from baselines.methods import METHODS
from common.parameters import ParameterError
from common.tables import read_csv
from coop_lad_ts import main_coop
from dedgeai import main_dedgeai
from edge_sim.dispatcher import Dispatcher
from edge_sim.schedulers import check_learning, method_of, scheduler_names
from edge_sim.server_profile import Profile, equal_servers
from lad_ts.method import Method
from lad_ts.run_parameters import FixedParameters

# --- schedulers ---


def test_every_method_schedules_but_the_bound():
    assert set(METHODS) - set(scheduler_names()) == {"lower_bound"}
    assert scheduler_names(learning=True) == [key for key, method in METHODS.items() if method.learns]
    assert all(method_of(name) is METHODS[name] for name in scheduler_names())
    assert method_of("lad_ts:paper") is METHODS["lad_ts"] and method_of("coop_lad_ts:tail") is METHODS["coop_lad_ts"]
    for name in ("lower_bound", "lad_ts:best", "opt_ts:paper", "nowhere.py:Mine", ""):
        with pytest.raises(ParameterError, match="must be one of lad_ts") as refused:
            method_of(name)
        assert (refused.value.flag, refused.value.value) == ("scheduler", name)


def test_a_method_that_is_added_to_the_registry_schedules(monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "stay", Method("stay", "Stay", FixedParameters, LocalOnly, "none.py"))
    run_here(
        main_dedgeai, "--simulate", "--scheduler=stay", "--num_tasks=40", "--num_servers=3", "--out", tmp_path / "a"
    )
    rows = read_csv(tmp_path / "a/tasks.csv")
    assert len(rows) == 40 and all(row["server"] == row["base_station"] for row in rows)


def test_a_scheduler_of_the_users_own_schedules(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text(
        "import numpy as np\nfrom lad_ts.scheduler import Scheduler\n"
        "class Last(Scheduler):\n    def act(self, slot):\n        return np.full(slot.mask.shape, self.num_bs - 1)\n"
    )
    run_here(
        main_dedgeai,
        "--simulate",
        f"--scheduler={own}:Last",
        "--num_tasks=9",
        "--num_servers=3",
        "--out",
        tmp_path / "a",
    )
    assert {row["server"] for row in read_csv(tmp_path / "a/tasks.csv")} == {"2"}


def learn_late(dispatcher: Dispatcher, profile: Profile, number: int) -> None:
    """Decide rounds of 4 tasks at each base station; learn from each after the next, as when tasks are on their way."""
    rng, servers = np.random.default_rng(0), profile.servers
    for k in range(number):
        base_station = rng.permutation(np.repeat(np.arange(servers), 4))
        work = profile.workload(rng.integers(10, 20, 4 * servers))
        dispatcher.decide(base_station, work, np.full(4 * servers, 2e-4), rng.uniform(0, 3, servers))
        if k > 0:
            dispatcher.learn_from(k - 1, rng.uniform(0.2, 2, 4 * servers))
    assert dispatcher.learned == number - 1 and list(dispatcher.decided) == [number - 1]


@pytest.mark.parametrize("scheduler", ["lad_ts", "dqn_ts"])
def test_agents_learn_from_rounds_whose_delays_come_late(scheduler, tmp_path, no_plots):
    profile = equal_servers(0.02, 0.0, 0.0, np.ones(2))
    chosen = ready(scheduler, profile, tmp_path)
    check_learning(chosen)
    before = {name: value.clone() for name, value in chosen.scheduler.state_dict().items() if name.startswith("theta")}
    learn_late(Dispatcher(chosen, learn=True), profile, 30)
    after = chosen.scheduler.state_dict()
    assert before and chosen.scheduler.finite()
    assert all(not (after[name] == value).all() for name, value in before.items() if "target" not in name)


# --- command line ---


def test_simulations_from_the_command_line_repeat_and_report(tmp_path, capsys):
    flags = ["--simulate", "--num_tasks", "2000", "--num_servers", "50", "--scheduler", "water_filling"]
    for out in ("a", "b"):
        run_here(main_dedgeai, *flags, "--load", "0.9", "--spread", "0.3", "--out", tmp_path / out)
    assert (tmp_path / "a/delays.csv").read_bytes() == (tmp_path / "b/delays.csv").read_bytes()
    summary = {row["quantity"]: float(row["value"]) for row in read_csv(tmp_path / "a/summary.csv")}
    assert summary["tasks"] == 2000 and 0.16 < summary["delay p50"] < summary["delay p99"] <= summary["delay maximum"]
    assert {"simulation.png", "simulation.pdf", "queues.csv", "config.json"} <= {
        p.name for p in (tmp_path / "a").iterdir()
    }
    assert "decision time per task" in capsys.readouterr().out
    stored = json.loads((tmp_path / "a/config.json").read_text())["parameters"]
    assert (stored["num_tasks"], stored["steps"], stored["num_servers"]) == ("2000", "10-19", 50)  # texts as they came


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_tasks", "0"], "--num_tasks=0: must be an integer from 1"),
        (["--num_tasks", "5,x"], "--num_tasks=5,x"),
        (["--num_servers", "0"], "--num_servers=0"),
        (["--scheduler", "best"], "--scheduler=best: must be one of lad_ts"),
        (["--scheduler", "lower_bound"], "--scheduler=lower_bound: a bound is no scheduler; must be one of lad_ts"),
        (
            ["--scheduler", "opt_ts", "--checkpoint", "x.pt"],
            "--checkpoint=x.pt: must come with a scheduler that learns",
        ),
        (["--checkpoint", "none.pt", "--simulate"], "--checkpoint=none.pt: must be a checkpoint"),
        (["--simulate", "--num_servers", "500"], "--num_servers=500: must be at most 200"),
        (["--speeds", "1,2", "--simulate"], "--speeds=1,2: must be --num_servers=5"),
        (["--speeds", "1,1,1,1,1"], "must come with --compute simulated"),
        (["--steps", "0"], "--steps=0"),
        (["--load", "nan"], "--load=nan"),
        (["--serve", "--simulate"], "must not be combined with --simulate"),
        (["--serve", "--host", "0.0.0.0"], "--host=0.0.0.0: must be 127.0.0.1, or come with a --token"),
        (["--serve", "--root_path", "/api/x"], "--root_path=/api/x: must be as /images"),
        (["--serve", "--keep_images", "7w"], "--keep_images=7w: must be a number of images, or of days"),
        (["--serve", "--token_file", "nowhere"], "--token_file=nowhere: must be a text file"),
        (["--serve", "--token", "a", "--token_file", "b"], "must not be combined with --token"),
        (["--learn", "--scheduler", "opt_ts"], "--learn=True: must come with a scheduler that learns"),
        (["--resume", "nowhere"], "--resume=nowhere: must hold a run's config.json"),
        (["--models", "nowhere"], "--models=nowhere: no CLIP-L"),
        (["--width", "65"], "--width=65: must be a multiple of 16"),
        (["--prompts", "nowhere.txt", "--simulate"], "--prompts=nowhere.txt: must be a text file"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_starts(flags, words, capsys, tmp_path):
    out = [] if "--resume" in flags else ["--out", tmp_path / "run"]
    assert words in refusal(capsys, main_dedgeai, *flags, *out)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_what_an_earlier_version_left_is_not_taken_for_a_run_without_tasks(capsys, tmp_path):
    for name in ("journal.jsonl", "config.json"):
        (tmp_path / name).write_text("{}\n")
    for flags in (["--resume", tmp_path], ["--serve", "--out", tmp_path]):
        assert "its journal.jsonl is of an earlier version" in refusal(capsys, main_dedgeai, *flags)


def test_a_checkpoint_of_other_servers_is_refused(tmp_path, capsys):
    profile = equal_servers(0.01, 0.0, 0.0, np.ones(3))
    ready("lad_ts", profile, tmp_path)
    checkpoint = next(tmp_path.glob("lad_ts_3servers_*/checkpoint.pt"))
    flags = ["--simulate", "--checkpoint", checkpoint, "--out", tmp_path / "out"]
    assert "must be of --num_servers=5 servers, but is of 3" in refusal(capsys, main_dedgeai, *flags)
    assert "holds a run of LAD-TS" in refusal(capsys, main_dedgeai, *flags, "--scheduler", "sac_ts")
    run_here(main_dedgeai, *flags, "--num_servers", 3, "--num_tasks", 50)


def test_a_shared_cooperative_checkpoint_serves_any_number_of_servers_and_learns_on_its_own(tmp_path, no_plots):
    run_here(main_coop, "--num_bs=3", "--num_tasks=10", "--num_slots=6", "--episodes=1", "--fit_steps=3",
             "--distil_updates=2", "--takeover=0", "--out", tmp_path / "coop")  # fmt: skip
    checkpoint = tmp_path / "coop" / "checkpoint.pt"
    flags = ["--simulate", "--scheduler=coop_lad_ts", "--checkpoint", checkpoint, "--num_tasks=40"]
    for servers in (3, 7):
        run_here(main_dedgeai, *flags, "--num_servers", servers, "--out", tmp_path / str(servers))
        assert len((tmp_path / str(servers) / "tasks.csv").read_text().splitlines()) == 41
    profile, other = (equal_servers(0.02, 0.0, 0.0, np.ones(servers)) for servers in (3, 7))
    with pytest.raises(ParameterError, match="--learn=True: must come with agents trained for 7 servers"):
        check_learning(ready("coop_lad_ts", other, tmp_path, checkpoint))
    own = ready("coop_lad_ts", profile, tmp_path, checkpoint)
    check_learning(own)
    before = own.scheduler.state_dict()["theta"].clone()
    learn_late(Dispatcher(own, learn=True), profile, 8)  # 5 rounds are an episode, which is learned from as a whole
    assert not (own.scheduler.state_dict()["theta"] == before).all() and own.scheduler.finite()
