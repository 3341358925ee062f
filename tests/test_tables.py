"""Tables in CSV: whatever a cell holds comes back, rows cost the same however many there are, kills cost one row."""

import csv
import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.parameters import ParameterError
from common.tables import Table, read_csv, write_csv
from experiments.page_parts import csv_table
from experiments.study_results import StudyResults
from lad_ts.arrival_file import Cutting, read_tasks
from lad_ts.episodes import EpisodeStatistics
from lad_ts.history import History

HEADER = ("image", "prompt")
ODD = st.sampled_from(['"', ",", "\r", "\n", "\r\n", "\0", "\u2028", "\ufeff", "=1+1", "", " ", "'", "\\", "\x1a", ";"])
CELL = st.lists(ODD | st.text(max_size=4), max_size=5).map("".join)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(CELL, CELL), max_size=6), single=st.lists(CELL, max_size=4), cut=st.integers(0, 400))
def test_what_was_written_is_read_back_and_a_torn_line_costs_itself_alone(rows, single, cut):
    with tempfile.TemporaryDirectory() as place:
        path, grown = Path(place) / "whole.csv", Path(place) / "grown.csv"
        table = Table(grown, HEADER)
        ends = [0]
        for row in rows:
            table.append(row)
            ends.append(grown.stat().st_size)
        write_csv(path, HEADER, rows)
        expected = [dict(zip(HEADER, row, strict=True)) for row in rows]
        assert read_csv(path) == table.rows() == expected
        if rows:
            assert path.read_bytes() == grown.read_bytes()
            with path.open(newline="", encoding="utf-8") as file:  # for everybody else's reader
                assert list(csv.reader(file)) == [list(HEADER), *map(list, rows)]
        write_csv(path, ["cell"], [[cell] for cell in single])
        assert [row["cell"] for row in read_csv(path)] == single

        content = grown.read_bytes() if rows else b""
        grown.write_bytes(content[:cut])
        kept = [row for row, end in zip(expected, ends[1:], strict=True) if end <= cut]
        Table(grown, HEADER).append(("new", "row"))
        assert read_csv(grown) == [*kept, {"image": "new", "prompt": "row"}]


def test_long_cells_are_read_and_the_limit_stays_as_it_was(tmp_path):
    before, text = csv.field_size_limit(), "long \r prompt " * 20_000
    Table(tmp_path / "a.csv", HEADER).append(("1.png", text))
    assert read_csv(tmp_path / "a.csv") == [{"image": "1.png", "prompt": text}]
    assert csv.field_size_limit() == before


def test_text_that_utf_8_lacks_can_be_written(tmp_path):
    write_csv(tmp_path / "a.csv", HEADER, [("\udc80.png", "lost")])
    assert read_csv(tmp_path / "a.csv") == [{"image": "\\udc80.png", "prompt": "lost"}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n1,2\n3\n", "row 2 has 1 cells"),
        (b"a,b\n1,2,3\n", "row 1 has 3 cells"),
        (b"a,a\n1,2\n", "two columns of one name"),
        (b"a,b\n\xff,2\n", "line 2 is no UTF-8"),
        (b"a,b\nx\ry,2\n", "line 2 is none of a CSV file"),
        (b'a,b\n"x"y,2\n', "line 2 is none of a CSV file"),
        (b'a,b\n1,"2\n', "torn"),
        (b"a,b\n1", "torn"),
    ],
)
def test_what_is_no_table_is_a_value_error_in_words(tmp_path, content, words):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_csv(path)
    with pytest.raises(ValueError, match=r"other columns|row|line|name"):
        Table(path, HEADER).append((1, 2))
    assert path.read_bytes() == content


def test_hand_written_tables_are_read(tmp_path):
    """With a byte order mark, other line ends, blank lines, and without an end of the last line."""
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n3,4")
    assert read_csv(tmp_path / "a.csv") == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    (tmp_path / "a.csv").write_bytes(b"a,b")
    assert read_csv(tmp_path / "a.csv") == []
    (tmp_path / "a.csv").write_bytes(b"")
    assert read_csv(tmp_path / "a.csv") == []


def test_rows_of_another_length_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="3 cells, and the table 2"):
        write_csv(tmp_path / "a.csv", HEADER, [(1, 2, 3)])
    with pytest.raises(ValueError, match="1 cells, and the table 2"):
        Table(tmp_path / "a.csv", HEADER).append((1,))
    assert not list(tmp_path.iterdir())


def test_a_torn_line_is_told_once(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text('image,prompt\n1.png,dog\n2.png,"cat\nand do')
    table = Table(path, HEADER)
    assert [row["image"] for row in table.rows()] == ["1.png"]
    table.append(("3.png", "owl"))
    assert capsys.readouterr().err.count("is torn") == 1
    assert path.read_text() == "image,prompt\n1.png,dog\n3.png,owl\n"


def test_a_table_that_somebody_else_has_saved_meanwhile_is_gone_on_with(tmp_path):
    path = tmp_path / "a.csv"
    table = Table(path, HEADER)
    table.append((1, "dog"))
    path.write_text("image,prompt\n1,fox\n2,owl\n")
    table.append((3, "cat"))
    assert path.read_text() == "image,prompt\n1,fox\n2,owl\n3,cat\n"
    path.unlink()
    table.append((4, "hen"))
    assert path.read_text() == "image,prompt\n4,hen\n"


def test_a_row_costs_the_same_at_40000_rows_as_at_the_first(tmp_path):
    write_csv(tmp_path / "a.csv", HEADER, [(i, "a prompt, with a comma") for i in range(40_000)])
    long, short = Table(tmp_path / "a.csv", HEADER), Table(tmp_path / "b.csv", HEADER)

    took: dict[Table, list[float]] = {long: [], short: []}
    for i in range(60):
        for table, times in took.items():
            start = time.perf_counter()
            table.append((i, "another"))
            times.append(time.perf_counter() - start)
    assert np.median(took[long]) < 3 * np.median(took[short])
    assert len(read_csv(tmp_path / "a.csv")) == 40_060


def test_a_killed_process_leaves_whole_rows(tmp_path):
    code = """
import sys
from pathlib import Path
from common.tables import Table
table = Table(Path("a.csv"), ("image", "prompt"))
while True:
    table.append((len(table.header), 'two "lines"\\n' * 500))
    print("row", flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE)
    for _ in range(20):
        writer.stdout.readline()
    writer.kill()
    writer.wait()
    table = Table(tmp_path / "a.csv", HEADER)
    count = len(table.rows())
    table.append((1, "after"))
    rows = read_csv(tmp_path / "a.csv")
    assert len(rows) == count + 1 >= 21
    assert {row["prompt"] for row in rows} == {'two "lines"\n' * 500, "after"}


def test_a_growing_table_is_the_table_written_whole(tmp_path):
    """Whoever changes the file meanwhile, and only new rows are made."""
    rows: list[tuple[str, str]] = []
    grown, asked = Table(tmp_path / "grown.csv", HEADER), []

    def rows_from(first: int) -> list[tuple[str, str]]:
        asked.append(first)
        return rows[first:]

    for count, change in ((0, ""), (3, ""), (0, ""), (2, "row of somebody else"), (4, ""), (1, "gone"), (2, "")):
        rows += [(f"{len(rows) + k}.png", 'a "prompt"\r') for k in range(count)]
        if change == "gone":
            (tmp_path / "grown.csv").unlink()
        elif change:
            (tmp_path / "grown.csv").write_text(change)
        grown.grow(rows_from)
        write_csv(tmp_path / "whole.csv", HEADER, rows)
        assert (tmp_path / "grown.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert asked == [0, 0, 3, 0, 5, 0, 10]


def test_a_trainings_tables_cost_their_new_rows(tmp_path):
    """As 5,000 episodes of eight seeds, which each checkpoint wrote anew."""
    history, seeds = History(), list(range(8))
    history.measure(["loss"])
    columns = {f.name: np.arange(8.0) for f in dataclasses.fields(EpisodeStatistics)}
    stats = EpisodeStatistics(**columns)
    for episode in range(5000):
        history.add(seeds, episode, stats, np.ones(8), 1.0, {"loss": np.full(8, np.nan)})
    took = []
    for episode in (5000, 5001, 5002):
        start = time.perf_counter()
        history.write(tmp_path)
        took.append(time.perf_counter() - start)
        history.add(seeds, episode, stats, np.ones(8), 1.0, {"loss": np.ones(8)})
    history.write(tmp_path)
    assert max(took[1:]) < took[0] / 10
    again = History(history.rows)
    again.measure(["loss"])
    again.measured = history.measured
    (tmp_path / "again").mkdir()
    again.write(tmp_path / "again")
    for name in ("delay.csv", "seconds.csv", "metrics.csv"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_long_cells_are_told_of_or_cut_wherever_tables_are_read(tmp_path):
    numbers = tmp_path / "tasks.csv"
    numbers.write_text(f"time_s,base_station,input_mbit,steps\n{'0' * 140_000}1,0,1,2\n2,0,1,-3\n")
    cutting = Cutting(num_bs=1, num_tasks=1, slot_length=1.0, density=0.2, result=1.0, held_out=0.5)
    with pytest.raises(ParameterError, match="line 3: steps=-3: must be"):
        read_tasks(str(numbers), cutting)
    numbers.write_text(f"time_s,base_station,input_mbit,steps\n1,0,1,{'x' * 140_000}\n")
    with pytest.raises(ParameterError, match=r"line 2: steps='x{50}': must be a number"):
        read_tasks(str(numbers), cutting)
    write_csv(tmp_path / "a.csv", HEADER, [("1.png", "word " * 30_000)])
    assert len(page := csv_table(tmp_path / "a.csv", tmp_path, "a.csv")) < 2000 and " ..</td>" in page
    for content in ("experiment,setting\n1\n", "other\n1\n", "a\0\n\rb"):
        (tmp_path / "trials.csv").write_text(content)
        with pytest.raises(ParameterError, match=r"its trials\.csv must be one of this script"):
            StudyResults().load(tmp_path / "trials.csv")
