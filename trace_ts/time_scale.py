import numpy as np


def unit_time(time, work, scale):
    if scale == "compress":
        return time * (work.sum() / (time[-1] - time[0]))
    h = np.floor(time / 3600).astype(int)
    wh = np.bincount(h, work)
    cum = np.concatenate([[0], np.cumsum(wh)])
    return cum[h] + (time / 3600 - h) * wh[h]


def base_stations(user, num, seed):
    seed = int(seed) * 0xD1B54A32D192ED03 % 2**64
    x = (user.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(32)
    return (x % np.uint64(num)).astype(np.int64)
