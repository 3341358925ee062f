"""Find the best shift maps for every power and number of symbols: the table meg/shift_maps.csv.

The search needs no data: numbers are standard normal, and a map's error is measured by sending fixed ones. Example:
python meg/fit_shift_maps.py --out results/meg/shift_maps
"""

import common.quiet_start  # noqa: F401

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.optimize import minimize

from common.command_line import command_line
from common.parameters import Parameters, parameter
from common.progress import Progress
from common.run_folder import RESULTS, new_folder, write_config
from common.tables import write_csv
from meg.channel import CHANNELS, ratio
from meg.shift_maps import TABLE, Best, ShiftMaps

MOST = 3  # symbols of a number
POWER_DB = np.arange(-30.0, 62.0, 2.0)
LEAST_DB = 4.0  # power below which a second symbol is of no use
HEADER = (
    *("channel", "symbols", "power_db", "mse", *(f"share_{j}" for j in range(MOST))),
    *(f"period_{j}" for j in range(1, MOST)),
)


@dataclasses.dataclass(kw_only=True)
class MapConfig(Parameters):
    """Every parameter of fit_shift_maps.py."""

    GROUP: ClassVar[str] = "search"

    numbers: int = parameter(256, "numbers that a map is found with", low=16, high=10**6)
    noises: int = parameter(
        16, "noises for each of them, and fades under fading; errors are told by 8 times as many", low=1, high=1024
    )
    seed: int = parameter(0, "seed of the noise", low=0)
    threads: int = parameter(1, "CPU threads", low=1, high=1024)
    out: str | None = parameter(None, "folder of the table; default results/meg/shift_maps", path=True)


class Trial:
    """Fixed numbers, noises and power gains by which maps are compared."""

    def __init__(self, channel: str, config: MapConfig) -> None:
        places = (torch.arange(config.numbers, dtype=torch.float64) + 0.5) / config.numbers
        self.numbers = torch.special.ndtri(places).float()[None].expand(config.noises, -1)
        generator = torch.Generator().manual_seed(config.seed)
        half = torch.randn(MOST, (config.noises + 1) // 2, config.numbers, generator=generator)
        self.noise = torch.cat([half, -half], 1)[:, : config.noises]
        fades = -torch.log1p(-(torch.arange(config.noises) + 0.5) / config.noises)
        self.gains = torch.ones_like(fades) if channel == "awgn" else fades

    def error(self, power: float, shares: Sequence[float], periods: Sequence[float]) -> float:
        """The mean square error of the estimate for a map."""
        amplitudes = (power * torch.tensor([shares])).sqrt()
        one = ShiftMaps(amplitudes, torch.tensor([periods]).reshape(1, -1))
        sent = one.send(self.numbers.reshape(-1, 1)).reshape(*self.numbers.shape, -1)
        received = sent + self.noise[: len(shares)].movedim(0, -1) / self.gains.sqrt()[:, None, None]
        noise = (1 / self.gains)[:, None].expand_as(self.numbers).reshape(-1)
        found, _ = one.estimate(received.reshape(-1, 1, len(shares)), noise)
        return float((found[:, 0] - self.numbers.reshape(-1)).square().mean())


def unpacked(found: np.ndarray, symbols: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shares and periods of free numbers: log shares against the first one's, and logs of ratios of periods."""
    weights = np.exp(np.concatenate([[0.0], found[: symbols - 1].clip(-8, 8)]))
    periods = np.exp(np.cumsum(found[symbols - 1 :].clip(-6, 3)))
    return tuple((weights / weights.sum()).tolist()), tuple(periods.tolist())


def searched(trial: Trial, power: float, symbols: int, starts: Sequence[np.ndarray]) -> tuple[Best, np.ndarray]:
    """The best map that searches from those starts find, and its free numbers."""

    def cost(x: np.ndarray) -> float:
        return float(np.log(trial.error(power, *unpacked(x, symbols))))

    options = {"maxfev": 40 * symbols, "xatol": 0.01, "fatol": 1e-3}
    tried = [minimize(cost, start, method="Nelder-Mead", options=options) for start in starts]
    won = min(tried, key=lambda t: t.fun)
    return Best(float(np.exp(won.fun)), *unpacked(won.x, symbols)), won.x


def best_maps(trial: Trial, check: Trial, progress: Iterator[int]) -> list[list[Best]]:
    """The best maps for 1 to MOST symbols at every power, with the errors that `check` finds.

    Searches go on from lower powers and fewer symbols. A map that is no better than one of fewer symbols is that one.
    """
    powers = ratio(POWER_DB)
    fades = check.gains.double().numpy()
    rows = [[Best(float((1 / (1 + p * fades)).mean()), (1.0,), ()) for p in powers]]
    for symbols in range(2, MOST + 1):
        row, last = [], None
        for place, power in enumerate(powers):
            fewer = rows[-1][place]
            unused = Best(fewer.mse, (*fewer.shares, 0.0), (*fewer.periods, 1.0))
            row.append(unused)
            next(progress)
            if POWER_DB[place] < LEAST_DB * (symbols - 1):
                continue
            logs = np.log(np.maximum(fewer.shares, 1e-3))
            ratios = np.diff(np.log([1.0, *fewer.periods]))
            starts = [np.concatenate([logs[1:] - logs[0], [0.0], ratios, [np.log(r)]]) for r in (1.5, 0.5)]
            found, last = searched(trial, power, symbols, starts if last is None else [starts[place % 2], last])
            found = dataclasses.replace(found, mse=check.error(power, found.shares, found.periods))
            row[-1] = min(unused, found, *row[-2:-1], key=lambda best: best.mse)  # more power does no harm to a map
        rows.append(row)
    return rows


def main(config: MapConfig, given: dict[str, Any]) -> None:
    """Search for both channels, and write the table."""
    torch.set_num_threads(config.threads)
    with new_folder(config.out, RESULTS / "meg" / "shift_maps") as folder:
        write_config(folder, "meg shift maps", dataclasses.asdict(config))
        steps = range(len(CHANNELS) * (MOST - 1) * len(POWER_DB))
        progress = iter(Progress(steps, unit="map", desc="maps"))
        lines = []
        for channel in CHANNELS:
            check = Trial(channel, dataclasses.replace(config, noises=8 * config.noises, seed=config.seed + 1))
            for symbols, row in enumerate(best_maps(Trial(channel, config), check, progress), 1):
                for power_db, best in zip(POWER_DB, row, strict=True):
                    shares = [f"{s:.5f}" for s in best.shares] + [""] * (MOST - symbols)
                    periods = [f"{d:.5f}" for d in best.periods] + [""] * (MOST - symbols)
                    lines.append([channel, symbols, f"{power_db:g}", f"{best.mse:.6g}", *shares, *periods])
        write_csv(folder / TABLE.name, HEADER, lines)
        print(f"{len(lines)} maps in {folder / TABLE.name}")


if __name__ == "__main__":
    command_line(MapConfig, main, __doc__)
