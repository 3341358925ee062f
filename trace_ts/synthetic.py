"""A synthetic workload with what makes the trace of a real image service hard: users' bursts, hours, models that drift.

Users come by the hours' intensity, ask for images in bursts, come back or not, and mostly stay with a model. The
defaults are fitted to GenTD26. Start reading at `generate`.
"""

import dataclasses
import math

import numpy as np

from common.random_streams import Stream, random_generator
from trace_ts.time_scale import HOUR
from trace_ts.workload import Requests, requests_of

DAY, WEEK = 24, 168  # h
PIECES = 12  # of an hour, each of an intensity of its own


@dataclasses.dataclass(frozen=True)
class SyntheticParameters:
    """What the requests are drawn from; shares and weights of any sum."""

    users_per_hour: float = 9.3  # who come for the first time, in a mean hour
    hour_weights: tuple[float, ...] = (
        *(54, 58, 58, 33, 18, 17, 12, 5, 1.5, 1, 0, 0, 0, 0, 1.5, 32, 117, 144, 31, 57, 172, 169, 185, 201),
    )  # of a day
    day_weights: tuple[float, ...] = (0.9, 0.9, 1.1, 0.6, 0.15, 0.9, 1.2)  # of a week
    day_sd: float = 0.17  # of the log of a day's intensity
    hour_sd: float = 0.28  # of the log of an hour's intensity
    piece_sd: float = 0.2  # of the log of the intensity of 5 minutes
    regular_share: float = 0.0105  # of users who come often
    regular_visits: float = 15.0  # least number of their bursts
    regular_exponent: float = 0.96  # of the power law of that number
    regular_median: float = 4.2  # as return_median, of those with the least number; more bursts come sooner
    regular_sd: float = 1.9
    most_visits: float = 200.0  # of any user
    regular_length: float = 1.7  # of their bursts, over that of others
    return_a: float = 0.66  # other users come back after a burst with a chance drawn from Beta(a, b)
    return_b: float = 2.05
    return_median: float = 0.95  # mean hours' worth of intensity from a burst to the user's next
    return_sd: float = 2.1  # of its log
    return_least: float = 0.25  # that is added to it
    burst_median: float = 1.27  # of a burst's length, before it is rounded up
    burst_sd: float = 1.11  # of its log
    gap_median: float = 66.0  # s between a burst's requests
    gap_sd: float = 0.75  # of its log
    gap_most: float = 300.0  # s
    quick_share: float = 0.055  # of gaps that are short
    quick_mean: float = 6.0  # s, of these
    model_weights: tuple[float, ...] = (8500, 3950, 2350, 2200, 2200, 1150, 961, 813, 715, 687, 571)  # popular ones
    num_models: int = 90
    tail_weight: float = 233.0  # of the first model after those
    tail_exponent: float = 1.6  # of Zipf's law of the models after those
    drift_sd: float = 0.36  # of the log of a model's popularity
    drift_days: float = 5.0  # in which it forgets itself
    stay: float = 0.32  # chance that a user's second request keeps the model
    stay_later: float = 0.82  # the same after many requests
    settle: float = 20.0  # requests after which most of the way between both is gone
    revisit: float = 0.65  # chance that otherwise it has the model of one of the user's requests before
    images: tuple[int, ...] = (1, 2, 4, 8)
    image_weights: tuple[float, ...] = (58, 8, 19, 15)
    steps: tuple[int, ...] = (30, 40, 28, 50, 35, 25, 38, 20, 100, 60)
    step_weights: tuple[float, ...] = (890, 65, 7, 8, 5, 4, 4, 3, 4, 1)
    same_work: float = 0.84  # chance that a user's next request has the same images and steps


def generate(num_requests: int, seed: int, parameters: SyntheticParameters | None = None) -> Requests:
    """That many requests, the same for the same seed. Time 0 is the begin of the first day."""
    p = SyntheticParameters() if parameters is None else parameters
    weeks = 1 + int(num_requests / (p.users_per_hour * 4 * WEEK))
    while True:
        rng = random_generator(Stream.TRACE_SYNTHETIC, seed, weeks)
        user, time = arrivals(p, weeks, rng)
        if len(user) >= num_requests:
            break
        weeks *= 2
    order = np.lexsort((time, user))
    user, time = user[order], time[order]
    work, model = works(p, user, rng), models(p, user, time, rng)
    first = np.argsort(time, kind="stable")[:num_requests]
    return requests_of(time[first], user[first].tolist(), work[first], model[first].tolist())


def arrivals(p: SyntheticParameters, weeks: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """User and time in s of every request of some weeks, in the order of bursts."""
    edges, passed = intensity(p, weeks, rng)
    user, begin, longer = visits(p, passed[-1], rng)
    length = np.ceil(p.burst_median * longer * np.exp(p.burst_sd * rng.standard_normal(len(user)))).astype(np.int64)
    gap = gaps(p, int(length.sum()), rng)
    first = np.cumsum(length) - length
    gap[first] = np.interp(begin, passed, edges)  # the time of a burst's first request
    run = np.cumsum(gap)
    return user.repeat(length), run - (run[first] - gap[first]).repeat(length)


def intensity(p: SyntheticParameters, weeks: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Edges of pieces of hours in s, and the intensity that has passed until then, 1 in a mean hour."""
    hours = weeks * WEEK
    weight = np.outer(p.day_weights, p.hour_weights).ravel()
    weight = np.tile(weight, weeks) * around(p.hour_sd, hours, rng)
    weight *= around(p.day_sd, hours // DAY, rng).repeat(DAY)
    pieces = weight.repeat(PIECES) * around(p.piece_sd, hours * PIECES, rng)
    passed = np.append(0.0, np.cumsum(pieces))
    return np.arange(len(passed)) * (HOUR / PIECES), passed * (hours / passed[-1])


def around(sd: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Factors [count] whose logs are uniform around 0 with this standard deviation."""
    return np.exp(sd * np.sqrt(3) * rng.uniform(-1, 1, count))


def visits(p: SyntheticParameters, total: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User of each burst, the intensity that has passed until it begins, and by what it is longer than others.

    Bursts that begin after the total are left out.
    """
    users = rng.poisson(p.users_per_hour * total)
    chance = rng.beta(p.return_a, p.return_b, users)  # of coming back
    regular = rng.random(users) < p.regular_share
    often = p.regular_visits * (1 - rng.random(users)) ** (-1 / p.regular_exponent)
    number = np.where(regular, often, rng.geometric(np.maximum(1 - chance, 1 / p.most_visits)))
    number = np.minimum(number, p.most_visits).astype(np.int64)
    median = np.where(regular, p.regular_median * p.regular_visits / number, p.return_median).repeat(number)
    sd = np.where(regular, p.regular_sd, p.return_sd).repeat(number)
    lag = p.return_least + median * np.exp(sd * rng.standard_normal(len(sd)))
    first = np.cumsum(number) - number
    lag[first] = rng.uniform(0, total, users)
    run = np.cumsum(lag)
    begin = run - (run[first] - lag[first]).repeat(number)
    within = begin < total
    user = np.arange(users).repeat(number)[within]
    return user, begin[within], np.where(regular, p.regular_length, 1.0)[user]


def gaps(p: SyntheticParameters, count: int, rng: np.random.Generator) -> np.ndarray:
    """Seconds [count] between two requests of a burst."""
    usual = p.gap_median * np.exp(p.gap_sd * rng.standard_normal(count))
    usual = np.where(usual > p.gap_most, p.gap_most * rng.random(count), usual)
    return np.where(rng.random(count) < p.quick_share, rng.exponential(p.quick_mean, count), usual)


def draws(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices [count] drawn in proportion to weights."""
    return np.searchsorted(np.cumsum(weights) / np.sum(weights), rng.random(count), side="right")


def works(p: SyntheticParameters, user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Image-steps of requests that are in the order of users, then of time."""
    images = np.array(p.images)[draws(np.array(p.image_weights), len(user), rng)]
    steps = np.array(p.steps)[draws(np.array(p.step_weights), len(user), rng)]
    new = np.append(True, user[1:] != user[:-1]) | (rng.random(len(user)) >= p.same_work)
    source = np.maximum.accumulate(np.where(new, np.arange(len(user)), 0))
    return (images * steps)[source].astype(np.float64)


def models(p: SyntheticParameters, user: np.ndarray, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Models of requests that are in the order of users, then of time."""
    fresh = popular(p, (time // (HOUR * DAY)).astype(np.int64), rng).tolist()
    stays, revisits, which = (rng.random(len(user)).tolist() for _ in range(3))
    chosen: list[int] = []
    begin, last = 0, -1
    for k, someone in enumerate(user.tolist()):
        if someone != last:
            begin, last = k, someone
        if k > begin and stays[k] < p.stay_later - (p.stay_later - p.stay) * math.exp((begin + 1 - k) / p.settle):
            chosen.append(chosen[-1])
        elif k > begin and revisits[k] < p.revisit:
            chosen.append(chosen[begin + int(which[k] * (k - begin))])
        else:
            chosen.append(fresh[k])
    return np.array(chosen)


def popular(p: SyntheticParameters, day: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A model for each request by the popularity of its day."""
    top = len(p.model_weights)
    tail = p.tail_weight * (1 + np.arange(p.num_models - top) / top) ** -p.tail_exponent
    days = int(day.max()) + 1
    level = np.log(np.append(p.model_weights, tail))
    keep = np.exp(-1 / p.drift_days)
    drift = p.drift_sd * rng.standard_normal(p.num_models)
    fresh, model = rng.random(len(day)), np.empty(len(day), dtype=np.int64)
    for d in range(days):
        share = np.exp(level + drift - p.drift_sd**2 / 2)
        today = day == d
        model[today] = np.searchsorted(np.cumsum(share) / share.sum(), fresh[today], side="right")
        drift = keep * drift + p.drift_sd * np.sqrt(1 - keep**2) * rng.standard_normal(p.num_models)
    return model
