"""Named scenarios: values of the environment's parameters that `--scenario` fills in where none are given.

The loads are those of scenario seed 4, the default. Start reading at `SCENARIOS`.
"""

from typing import Any

SCENARIOS: dict[str, dict[str, Any]] = {
    "paper": {},
    "light": {"num_tasks": 20},
    "overload": {"num_tasks": 63},
    "heterogeneous": {"capacity_min": 4, "capacity_max": 100, "num_tasks": 90},
    "homogeneous": {"capacity_min": 30, "capacity_max": 30},
    "small": {"num_bs": 5},
    "large": {"num_bs": 100},
    "poisson": {"arrivals": "poisson"},
    "bursty": {"arrivals": "bursty"},
    "diurnal": {"arrivals": "diurnal"},
}
DESCRIPTIONS = {
    "paper": "the paper's environment, load 1.25",
    "light": "few tasks, load 0.59",
    "overload": "many tasks, load 1.61",
    "heterogeneous": "capacities from 4 to 100 Gcycles/s, load 1.17",
    "homogeneous": "all capacities 30 Gcycles/s, load 1.36",
    "small": "5 base stations, load 1.31",
    "large": "100 base stations, load 1.24",
    "poisson": "Poisson counts, load 1.33",
    "bursty": "bursts at each base station, load 1.21",
    "diurnal": "a day with a peak in its middle, load 1.23",
}
