import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Requests:
    time: np.ndarray
    user: np.ndarray
    work: np.ndarray
    model: np.ndarray
    num_users: int
    num_models: int

    def __len__(self):
        return len(self.time)

    def part(self, x):
        return dataclasses.replace(self, **{n: getattr(self, n)[x] for n in ("time", "user", "work", "model")})

    def halves(self):
        h = len(self) // 2
        return self.part(slice(0, h)), self.part(slice(h, None))
