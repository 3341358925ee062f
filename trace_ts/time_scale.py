"""A trace's time scaled to an offered load, and the base stations of its users. Start reading at `flat`."""

import numpy as np

from common.parameters import ParameterError

HOUR = 3600.0  # s


def flat(time: np.ndarray, work: np.ndarray, load: float, total_rate: float) -> np.ndarray:
    """Times [K] in s by which every hour lasts as long as its work takes at the load.

    time [K] is in s, ascending, work [K] in image-steps, total_rate that of all servers in image-steps/s. t' is the
    work of the hours before over (load x total_rate), and linear inside the hour, so bursts below an hour stay.
    """
    return unit_time(time, work, "flat") / (load * total_rate)


def compress(time: np.ndarray, work: np.ndarray, load: float, total_rate: float) -> np.ndarray:
    """Times [K] in s from 0, scaled by one factor, so that work per time over total_rate is the load; as `flat`.

    Raises ParameterError for requests of a single time.
    """
    return unit_time(time, work, "compress") / (load * total_rate)


def unit_time(time: np.ndarray, work: np.ndarray, scale: str) -> np.ndarray:
    """Times [K] of `flat` or `compress` at a load of 1 on servers of 1 image-step/s together. Raises ParameterError."""
    if not len(time):
        return np.zeros(0)
    if scale == "compress":
        if not (span := time[-1] - time[0]):
            raise ParameterError("time_scale", scale, "must have requests of two times at least, to be scaled by them")
        return (time - time[0]) * (work.sum() / span)
    hours, place = np.unique(np.floor(time / HOUR), return_inverse=True)
    of_hour = np.bincount(place, work)
    before = np.cumsum(of_hour) - of_hour
    return before[place] + (time / HOUR - hours[place]) * of_hour[place]


def base_stations(user: np.ndarray, num_base_stations: int, seed: int) -> np.ndarray:
    """The base station [K] of each user [K]: a hash of the user's number and the seed, the same on every machine."""
    offset = seed * 0xD1B54A32D192ED03 % 2**64
    mixed = (user.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(offset)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    return (mixed % np.uint64(num_base_stations)).astype(np.int64)
