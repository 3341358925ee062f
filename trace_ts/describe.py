"""What a workload is like in numbers: arrivals, hours, users, work, models, switches. Start reading at `describe`."""

from collections import OrderedDict

import numpy as np

from common.random_streams import Stream, random_generator
from trace_ts.scenario import draw_rates
from trace_ts.time_scale import HOUR, base_stations
from trace_ts.workload import Requests

BURST_GAP = 300.0  # s; a user's requests that follow each other sooner are of one burst
BUSY_HOUR = 30  # requests of an hour inside which gaps are counted
WINDOWS = (10, 60, 300, 3600)  # s
RANKS = 40  # most popular models that Zipf's exponent is fitted to
DRAWS = 10  # of rates and hashes


def describe(requests: Requests, num_base_stations: int = 20) -> dict[str, float]:
    """Every measure of a workload by its name, with the unit in it; NaN where there are too few requests for it.

    Switches are those of as many servers as base stations, of drawn rates, each request going to one of them with a
    probability proportional to its rate. Raises ValueError for less than two requests.
    """
    if len(requests) < 2:
        raise ValueError("a workload of less than two requests has no gaps to describe")
    return {
        **interarrivals(requests.time),
        **dispersion(requests.time),
        **hourly_work(work_of_hours(requests)),
        **users(requests),
        **works(requests.work),
        **models(requests.model),
        **users_and_models(requests),
        **switches(requests, num_base_stations),
        **balance(requests.user, num_base_stations),
        **between_halves(requests),
    }


def interarrivals(time: np.ndarray) -> dict[str, float]:
    """Gaps between requests, also inside hours with `BUSY_HOUR` requests or more."""
    gaps, hour = np.diff(time), np.floor(time / HOUR)
    _, place, count = np.unique(hour, return_inverse=True, return_counts=True)
    inside = (np.diff(place) == 0) & (count[place[1:]] >= BUSY_HOUR)
    return {
        "interarrival_mean_s": float(gaps.mean()),
        "interarrival_median_s": float(np.median(gaps)),
        "interarrival_cv": variation(gaps),
        "interarrival_cv_inside_hours": variation(gaps[inside]),
    }


def variation(values: np.ndarray) -> float:
    """The coefficient of variation; NaN where there is none."""
    return float(values.std() / values.mean()) if values.size and values.mean() > 0 else np.nan


def dispersion(time: np.ndarray) -> dict[str, float]:
    """Variance over mean of the requests in windows from that of the first request to that of the last."""
    found = {}
    for window in WINDOWS:
        place, count = np.unique(np.floor(time / window), return_counts=True)
        windows = place[-1] - place[0] + 1  # most of them may be empty
        mean = time.size / windows
        found[f"dispersion_{window}_s"] = float(((count**2).sum() / windows - mean**2) / mean)
    return found


def work_of_hours(requests: Requests) -> np.ndarray:
    """The work of each hour from that of the first request to that of the last, in image-steps."""
    hour = np.floor(requests.time / HOUR)
    return np.bincount((hour - hour[0]).astype(np.int64), requests.work)


def hourly_work(hours: np.ndarray) -> dict[str, float]:
    """The work of hours over their mean, and the share of hours without any."""
    return {
        "hourly_peak_over_mean": float(hours.max() / hours.mean()),
        "hourly_p95_over_mean": float(np.percentile(hours, 95) / hours.mean()),
        "empty_hours_share": float((hours == 0).mean()),
    }


def by_user(requests: Requests) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time, and model, of requests in the order of users, then of time, and whether a request is not a user's first."""
    order = np.argsort(requests.user, kind="stable")
    user = requests.user[order]
    return requests.time[order], requests.model[order], np.append(False, user[1:] == user[:-1])


def burst_lengths(requests: Requests) -> np.ndarray:
    """Requests of every user's bursts, in which gaps are at most `BURST_GAP`."""
    time, _, later = by_user(requests)
    starts = np.flatnonzero(~(later & (np.diff(time, prepend=time[0]) <= BURST_GAP)))
    return np.diff(starts, append=time.size)


def users(requests: Requests) -> dict[str, float]:
    """Gaps between a user's requests, and the lengths of their bursts."""
    time, _, later = by_user(requests)
    gaps, length = np.diff(time, prepend=time[0])[later], burst_lengths(requests)
    return {
        "users": float(np.unique(requests.user).size),
        "user_gap_median_s": float(np.median(gaps)) if gaps.size else np.nan,
        "burst_mean": float(length.mean()),
        "burst_p95": float(np.percentile(length, 95)),
        "burst_p99": float(np.percentile(length, 99)),
    }


def works(work: np.ndarray) -> dict[str, float]:
    """The work of requests in image-steps."""
    levels = {f"work_p{level}_steps": float(np.percentile(work, level)) for level in (50, 75, 95, 99)}
    return levels | {"work_max_steps": float(work.max()), "work_cv2": variation(work) ** 2}


def models(model: np.ndarray) -> dict[str, float]:
    """The models' shares of requests, popular ones first, and Zipf's exponent over the first `RANKS` of them."""
    share = np.sort(np.bincount(model))[::-1] / model.size
    share = share[share > 0]
    top = share[:RANKS]
    zipf = -np.polyfit(np.log(np.arange(1, top.size + 1)), np.log(top), 1)[0] if top.size > 1 else np.nan
    return {
        "models": float(share.size),
        **{f"model_share_{k + 1}": float(share[k]) if k < share.size else 0.0 for k in range(5)},
        "model_share_top_10": float(share[:10].sum()),
        "zipf_exponent": float(zipf),
    }


def entropy(counted: np.ndarray) -> float:
    """The entropy in bits of frequencies that are proportional to numbers above 0."""
    share = counted / counted.sum()
    return float(-(share * np.log2(share)).sum())


def users_and_models(requests: Requests) -> dict[str, float]:
    """How far a user tells the model, and how often it is that of the request before."""
    alone = entropy(np.unique(requests.user, return_counts=True)[1])
    pairs = np.unique(np.stack([requests.user, requests.model]), axis=1, return_counts=True)[1]
    _, model, later = by_user(requests)
    same = model[1:] == model[:-1]
    return {
        "model_entropy_bits": entropy(np.unique(requests.model, return_counts=True)[1]),
        "model_entropy_given_user_bits": entropy(pairs) - alone,
        "same_as_users_last": float(same[later[1:]].mean()) if later.any() else np.nan,
        "same_as_last": float((requests.model[1:] == requests.model[:-1]).mean()),
    }


def switches(requests: Requests, servers: int) -> dict[str, float]:
    """The share of requests that find their model not resident, with one and three resident models (LRU)."""
    found = np.zeros((DRAWS, 2))
    for draw in range(DRAWS):
        rate = draw_rates(servers, draw)
        server = random_generator(Stream.TRACE_CHOICES, draw).choice(servers, len(requests), p=rate / rate.sum())
        for k, most in enumerate((1, 3)):
            found[draw, k] = switch_share(server, requests.model, most)
    one, three = found.mean(0)
    return {"switches_1_resident": float(one), "switches_3_resident": float(three)}


def switch_share(server: np.ndarray, model: np.ndarray, most: int) -> float:
    """The share of requests whose model [K] is not among the `most` that their server [K] used last."""
    resident: dict[int, OrderedDict[int, None]] = {s: OrderedDict() for s in np.unique(server).tolist()}
    missed = 0
    for s, m in zip(server.tolist(), model.tolist(), strict=True):
        held = resident[s]
        if m in held:
            held.move_to_end(m)
            continue
        missed += 1
        held[m] = None
        if len(held) > most:
            held.popitem(last=False)
    return missed / len(model)


def balance(user: np.ndarray, num_base_stations: int) -> dict[str, float]:
    """Requests of the busiest base station over the mean, over hashes of users."""
    busiest = [
        np.bincount(base_stations(user, num_base_stations, seed), minlength=num_base_stations).max()
        for seed in range(DRAWS)
    ]
    over = np.array(busiest) * num_base_stations / user.size
    return {"busiest_bs_over_mean": float(over.mean()), "busiest_bs_over_mean_most": float(over.max())}


def between_halves(requests: Requests) -> dict[str, float]:
    """What share of the second half's requests is of users of the first, and how far models' shares of work move."""
    first, second = requests.halves()
    shares = [np.bincount(h.model, h.work, requests.num_models) / h.work.sum() for h in (first, second)]
    return {
        "known_users_share": float(np.isin(second.user, first.user).mean()),
        "model_shift_total_variation": float(np.abs(shares[0] - shares[1]).sum() / 2),
    }
