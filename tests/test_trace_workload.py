"""Traces: reading, time scales, measures and the synthetic generator, against plain loops and numbers by hand."""

import csv
import dataclasses
import math
import os
from datetime import datetime

import numpy as np
import pytest
from helpers import refusal, run_here
from scripts_by_path import load

from common.parameters import ParameterError
from common.tables import read_csv as read_table
from trace_ts.describe import describe, switch_share
from trace_ts.plot_workload import plot_workload
from trace_ts.simulation import times_of
from trace_ts.synthetic import SyntheticParameters, generate
from trace_ts.time_scale import base_stations, compress, flat, unit_time
from trace_ts.workload import Requests, read_csv, read_gentd26, read_trace, requests_of, write_csv

HEADER = "gmt_create,predict_type,exec_time_seconds,groupId,num_images_per_prompt,num_inference_steps,"
HEADER += "checkpoint_model_version_id"
ARRAYS = ("time", "user", "work", "model")
ROWS = (
    "2024-11-18 23:59:59,A,9.0,G0,1.0,30.0,M0",  # too early
    "2024-11-19 00:00:05,A,9.0,G7,4.0,30.0,M3",
    ",A,9.0,G1,1.0,30.0,M0",  # six rows that lack a value each
    "2024-11-19 00:00:06,A,,G1,1.0,30.0,M0",
    "2024-11-19 00:00:06,A,9.0,,1.0,30.0,M0",
    "2024-11-19 00:00:06,A,9.0,G1,,30.0,M0",
    "2024-11-19 00:00:06,A,9.0,G1,1.0,,M0",
    "2024-11-19 00:00:06,A,9.0,G1,1.0,30.0,",
    "2024-11-20 01:00:00,,9.0,G2,8.0,100.0,M1",  # lacks what is not read, and comes before the next
    "2024-11-19 00:00:02,A,0.0,G7,1.0,28.0,M1",
)


def gentd26(path, *rows):
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def test_the_trace_is_that_of_a_plain_reading(tmp_path):
    path = gentd26(tmp_path / "trace.csv", *ROWS)
    found, expected = read_gentd26(path, seed=3), []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            del row["predict_type"]
            if all(row.values()) and row["gmt_create"] >= "2024-11-19":
                since = datetime.fromisoformat(row["gmt_create"]) - datetime(2024, 11, 19)
                work = float(row["num_images_per_prompt"]) * float(row["num_inference_steps"])
                model = row["checkpoint_model_version_id"]
                expected.append((since.total_seconds(), row["groupId"], work, model))
    expected.sort()
    seconds, users, work, models = zip(*expected, strict=True)
    assert np.floor(found.time).tolist() == list(seconds) and len(found) == 3
    assert found.work.tolist() == list(work) == [28, 120, 800]
    assert users == ("G7", "G7", "G2") and found.user.tolist() == [0, 0, 1]
    assert models == ("M1", "M3", "M1") and found.model.tolist() == [0, 1, 0]
    assert (found.num_users, found.num_models) == (2, 2)
    assert all(np.array_equal(getattr(found, name), getattr(read_trace(path, seed=3), name)) for name in ARRAYS)
    assert not np.array_equal(found.time, read_gentd26(path).time)  # another seed


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("2024-11-19 00:00:06,A,9,G1,x,30,M0", "line 2: num_images_per_prompt='x': must be a number"),
        ("2024-11-19 00:00:06,A,9,G1,1,nan,M0", "line 2: num_inference_steps='nan': must be a number from 1 to"),
        ("2024-11-19 00:00:06,A,9,G1,1,0,M0", "line 2: num_inference_steps='0': must be a number from 1 to"),
        ("2024-11-19 00:00:06,A,-9,G1,1,30,M0", "line 2: exec_time_seconds='-9': must be a number from 0 to"),
        ("19.11.2024,A,9,G1,1,30,M0", "line 2: gmt_create='19.11.2024': must be a time as in"),
        ("2024-11-19 00:00:06,A,9,G1", "line 2: has 4 values; must have 7, as line 1"),
        (ROWS[0], "must hold whole requests from 2024-11-19 on, but has none"),
    ],
)
def test_a_damaged_trace_is_refused(tmp_path, row, words):
    with pytest.raises(ParameterError) as error:
        read_trace(gentd26(tmp_path / "trace.csv", row))
    assert error.value.flag == "requests" and words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "line 1: must name the columns; the columns are time_s, user, work, model"),
        (b"time_s,user,work\n1,a,2\n", "line 1: lacks model"),
        (b"time_s,user,work,model,user\n", "line 1: names user twice"),
        (b"time_s,user,work,model\n", "must hold requests, but has none"),
        (b"time_s,user,work,model\n1,a,2,m\n\n2,a,2\n", "line 4: has 3 values; must have 4, as line 1"),
        (b"time_s,user,work,model\ntime_s,user,work,model\n", "line 2: time_s='time_s': must be a number"),
        (b"time_s,user,work,model\n1_0,a,2,m\n", "line 2: time_s='1_0': must be a number"),
        *((f"time_s,user,work,model\n{x},a,2,m\n".encode(), f"line 2: time_s='{x}'") for x in ("nan", "inf", "-1", "")),
        *((f"time_s,user,work,model\n1,a,{x},m\n".encode(), f"line 2: work='{x}'") for x in ("nan", "0", "1e99", "-2")),
        (b"time_s,user,work,model\n1, ,2,m\n", "line 2: user='': must not be empty"),
        (b"time_s,user,work,model\n1,a,2,\n", "line 2: model='': must not be empty"),
        (b"\x1f\x8b\x08\x00\x00\xff", "must be a CSV file in UTF-8"),
        (b"time_s,user,work,model\n1,\xff,2,m\n", "must be a CSV file in UTF-8"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, words):
    path = tmp_path / "requests.csv"
    path.write_bytes(content)
    with pytest.raises(ParameterError) as error:
        read_trace(path)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        for read in (read_trace, read_csv, read_gentd26):
            with pytest.raises(ParameterError, match="must be a file that can be read"):
                read(path)


def test_a_plain_file_may_have_any_order_names_and_columns(tmp_path):
    path = tmp_path / "requests.csv"
    path.write_bytes(
        b'\xef\xbb\xbfmodel, note,work,user ,time_s\r\n"a,b",x,30,Eve,7\r\n\r\nc,y,2.5, Bob,7\r\nc,z,1,Eve,0\r\n'
    )
    found = read_trace(path)
    assert found.time.tolist() == [0, 7, 7] and found.work.tolist() == [1, 30, 2.5]
    assert found.user.tolist() == [0, 0, 1] and found.model.tolist() == [0, 1, 0]


def test_written_requests_are_read_back_equal(tmp_path):
    requests = generate(400, 1)
    write_csv(requests, tmp_path / "requests.csv")
    back = read_trace(tmp_path / "requests.csv")
    assert all(np.array_equal(getattr(back, name), getattr(requests, name)) for name in ARRAYS)
    assert (back.num_users, back.num_models) == (requests.num_users, requests.num_models)
    assert list(tmp_path.iterdir()) == [tmp_path / "requests.csv"]


def test_parts_keep_the_numbers_of_users_and_models():
    requests = generate(401, 1)
    first, second = requests.halves()
    assert (len(first), len(second)) == (200, 201)
    assert np.array_equal(np.concatenate([first.time, second.time]), requests.time)
    assert second.num_users == requests.num_users > np.unique(second.user).size
    even = requests.part(requests.work > 30)
    assert (even.work > 30).all() and even.num_models == requests.num_models


# --- time ---


def drawn(seed=0, count=300):
    """Requests of a few hours, some of them empty, far from time 0."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.choice([3, 4, 7, 90], count) * 3600 + rng.uniform(0, 3600, count)) + 500_000 * 3600
    return time, rng.uniform(1, 800, count)


def test_flat_makes_every_hour_last_as_long_as_its_work_takes():
    time, work = drawn()
    begin, expected = 0.0, []
    for hour in sorted({math.floor(t / 3600) for t in time}):
        inside = [(t, w) for t, w in zip(time, work, strict=True) if math.floor(t / 3600) == hour]
        lasts = sum(w for _, w in inside) / (0.8 * 50)
        expected += [begin + (t / 3600 - hour) * lasts for t, _ in inside]
        begin += lasts
    found = flat(time, work, 0.8, 50)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (np.diff(found) >= 0).all() and begin == pytest.approx(work.sum() / 40)
    np.testing.assert_allclose(flat(time, work, 1.6, 25), found)


def test_compress_gives_the_load():
    time, work = drawn()
    found = compress(time, work, 0.8, 50)
    assert work.sum() / (found[-1] - found[0]) / 50 == pytest.approx(0.8)
    assert found[0] == 0
    np.testing.assert_allclose(found * (time[-1] - time[0]), (time - time[0]) * found[-1])


def test_compressed_requests_that_train_and_the_rest_are_each_at_the_load():
    time, work = drawn()
    middle, nobody = len(time) // 3, [0] * len(time)
    work[middle:] *= 5
    requests = dataclasses.replace(requests_of(time, nobody, work, nobody), num_training=middle)
    found = times_of(requests, "compress")
    for part in (slice(middle), slice(middle, None)):
        assert requests.work[part].sum() == pytest.approx(found[part][-1] - found[part][0])
    assert (np.diff(found) >= 0).all()
    at_once = requests_of([3.0, 3.0, 4.0, 9.0], [0] * 4, [1.0] * 4, [0] * 4)  # nothing can be said of the first half
    assert times_of(at_once, "compress").tolist() == pytest.approx([0, 0, 4 / 6, 4])


@pytest.mark.parametrize("scale", ["flat", "compress"])
def test_few_requests_have_a_time_or_are_refused(scale):
    assert unit_time(np.zeros(0), np.zeros(0), scale).size == 0
    if scale == "flat":
        assert unit_time(np.array([5400.0]), np.array([30.0]), scale).tolist() == [15]
    else:
        with pytest.raises(ParameterError, match="two times"):
            unit_time(np.array([5.0, 5.0]), np.array([30.0, 30.0]), scale)


def plain_station(user, stations, seed):
    """The hash in integers of any size."""
    mixed = ((user + 1) * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03) % 2**64
    mixed ^= mixed >> 29
    mixed = mixed * 0xBF58476D1CE4E5B9 % 2**64
    return (mixed ^ mixed >> 32) % stations


def test_base_stations_of_users_are_stable_and_spread():
    users = np.arange(20_000)
    assert base_stations(users[:5], 20, 0).tolist() == [1, 18, 15, 19, 10]
    assert base_stations(users[:500], 7, 12).tolist() == [plain_station(user, 7, 12) for user in range(500)]
    stations = base_stations(users, 20, 5)
    assert np.array_equal(stations[::-1], base_stations(users[::-1], 20, 5))
    assert np.bincount(stations).min() > 850 and stations.max() == 19
    assert abs(np.corrcoef(stations, base_stations(users, 20, 6))[0, 1]) < 0.03


# --- measures and generator ---


def test_measures_of_a_few_requests_are_those_by_hand():
    requests = requests_of(
        [0, 100, 200, 3700, 3800, 11_000], ["a", "a", "b", "a", "b", "b"], [30, 30, 30, 30, 120, 120], list("xxyxyx")
    )
    found = describe(requests)
    expected = {
        "interarrival_mean_s": 2200,
        "interarrival_median_s": 100,
        "dispersion_3600_s": (5 / 4) / (6 / 4),  # counts 3, 2, 0, 1
        "hourly_peak_over_mean": 150 / 90,  # work 90, 150, 0, 120
        "empty_hours_share": 1 / 4,
        "users": 2,
        "user_gap_median_s": 3600,  # 100, 3600; 3600, 7200
        "burst_mean": 6 / 5,  # a: 2, 1; b: 1, 1, 1
        "work_p50_steps": 30,
        "work_max_steps": 120,
        "work_cv2": 0.5,  # mean 60, variance 1800
        "models": 2,
        "model_share_1": 4 / 6,
        "model_share_3": 0,
        "model_share_top_10": 1,
        "zipf_exponent": 1,  # shares 2 : 1
        "model_entropy_bits": math.log2(3) - 2 / 3,
        "model_entropy_given_user_bits": (math.log2(3) - 2 / 3) / 2,  # a: x alone; b: y, y, x
        "same_as_users_last": 3 / 4,
        "same_as_last": 1 / 5,
        "known_users_share": 1,
        "model_shift_total_variation": 30 / 90 * 0 + abs(60 / 90 - 150 / 270),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert math.isnan(found["interarrival_cv_inside_hours"])  # no hour of 30 requests


def test_switches_are_those_of_least_recently_used_models():
    model, one = np.array([0, 1, 0, 2, 1, 0]), np.zeros(6, dtype=np.int64)
    assert switch_share(one, model, 1) == 1
    assert switch_share(one, model, 2) == 5 / 6  # misses 0, 1, 2, 1, 0
    assert switch_share(one, model, 3) == 3 / 6
    assert switch_share(np.array([0, 1, 0, 1, 1, 0]), model, 1) == 4 / 6


def test_the_generator_is_seeded_and_gives_any_number():
    a, b, c = generate(500, 7), generate(500, 7), generate(500, 8)
    assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)
    assert not np.array_equal(a.time, c.time)
    for count in (1, 2, 5000):
        few = generate(count, 0)
        assert len(few) == count and (np.diff(few.time) >= 0).all() and few.time[0] >= 0 and few.work.max() <= 800
        assert few.user.max() + 1 == few.num_users and few.model.max() + 1 == few.num_models
    rare = dataclasses.replace(SyntheticParameters(), users_per_hour=0.05)
    assert len(generate(300, 0, rare)) == 300


MEASURES = {  # of the trace
    "interarrival_mean_s": 64.2,
    "interarrival_median_s": 14.68,
    "interarrival_cv": 11.83,
    "interarrival_cv_inside_hours": 1.974,
    "dispersion_10_s": 1.435,
    "dispersion_60_s": 3.7,
    "dispersion_300_s": 14.07,
    "dispersion_3600_s": 134.5,
    "hourly_peak_over_mean": 8.556,
    "hourly_p95_over_mean": 4.552,
    "empty_hours_share": 0.2918,
    "users": 4206,
    "user_gap_median_s": 73.35,
    "burst_mean": 3.437,
    "burst_p95": 10,
    "burst_p99": 23,
    "work_p50_steps": 30,
    "work_p75_steps": 120,
    "work_p95_steps": 240,
    "work_p99_steps": 320,
    "work_max_steps": 800,
    "work_cv2": 0.9809,
    "models": 86,
    "model_share_1": 0.3079,
    "model_share_2": 0.1477,
    "model_share_3": 0.09336,
    "model_share_4": 0.07897,
    "model_share_5": 0.07564,
    "model_share_top_10": 0.8664,
    "zipf_exponent": 1.707,
    "model_entropy_bits": 3.692,
    "model_entropy_given_user_bits": 1.195,
    "same_as_users_last": 0.7169,
    "same_as_last": 0.2481,
    "switches_1_resident": 0.7911,
    "switches_3_resident": 0.5483,
    "busiest_bs_over_mean": 1.808,
    "busiest_bs_over_mean_most": 2.044,
    "known_users_share": 0.2308,
    "model_shift_total_variation": 0.1585,
}
FAR = {"known_users_share": 0.4, "model_shift_total_variation": 0.3, "model_share_5": 0.25}  # else 15 %, of the mean


def test_the_generator_is_like_the_trace():
    found = [describe(generate(26_467, seed)) for seed in (0, 1, 2)]
    apart = {name: np.mean([of[name] for of in found]) / value - 1 for name, value in MEASURES.items()}
    assert {name: by for name, by in apart.items() if abs(by) > FAR.get(name, 0.15)} == {}


@pytest.mark.skipif("DEDGEAI_TRACE" not in os.environ, reason="needs the trace, named by DEDGEAI_TRACE")
def test_the_trace_has_its_measures():
    trace = read_trace(os.environ["DEDGEAI_TRACE"])
    assert len(trace) == 26_467
    found = describe(trace)
    assert {name: found[name] for name in MEASURES} == pytest.approx(MEASURES, rel=0.01)


def test_workloads_are_drawn_and_tabled_beside_each_other(tmp_path):
    named: dict[str, Requests] = {"one": generate(300, 0), "other": generate(200, 1)}
    plot_workload(named, tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"workload.png", "workload.pdf", "workload.csv"}
    rows = {row["measure"]: row for row in read_table(tmp_path / "new" / "workload.csv")}
    assert float(rows["burst_mean"]["other"]) == describe(named["other"])["burst_mean"]


# --- the command ---


def test_the_trace_is_fetched_once_its_terms_are_accepted(tmp_path, capsys):
    script, served, out = (
        load("download_trace"),
        gentd26(tmp_path / "served.csv", *ROWS),
        tmp_path / "data" / "trace.csv",
    )
    flags = ("--url", served.as_uri(), "--out", out)
    assert "research or study" in refusal(capsys, script, *flags)
    run_here(script, "--accept_terms", "True", *flags)
    assert out.read_bytes() == served.read_bytes() and "3 requests of 2 users" in capsys.readouterr().out
    gentd26(served, "2024-11-19 00:00:06,A,9.0,G1")
    assert "line 2: has 4 values" in refusal(capsys, script, "--accept_terms", "True", *flags)
    flags = ("--url", (tmp_path / "nowhere").as_uri(), *flags[2:])
    assert "must be an address that gives" in refusal(capsys, script, "--accept_terms", "True", *flags)
    assert len(out.read_text().splitlines()) == len(ROWS) + 1 and list(out.parent.iterdir()) == [out]
