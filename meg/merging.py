"""Feature merging: a latent as tokens, of which the most alike are sent once.

The matching is token merging's (Bolya and Hoffman 2023), from the package tomesd: in every 2 x 2 square of the tokens'
grid one is a destination, each other token is compared with all destinations, and those most alike are averaged into
theirs. The receiver must be told which went where: `side_information_bits` counts that. Start reading at `matching`.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from einops import rearrange
from tomesd.merge import bipartite_soft_matching_random2d

Merge = Callable[[torch.Tensor], torch.Tensor]
SQUARE = 2  # side of the squares in which one token is a destination
LARGEST = 1 - 1 / SQUARE**2  # ratio at which only the destinations are left


@dataclasses.dataclass(frozen=True)
class Tokens:
    """How a latent [B, C, H, W] becomes tokens: `rows` x `columns` cells each, matched on a grid.

    With `as_square` the grid is taken as square, whatever its shape: the published code groups 1 x 4 cells of 128 x 128
    but matches the 128 x 32 tokens as 64 x 64, so that neighbours there are not neighbours in the picture.
    """

    rows: int = 1
    columns: int = 1
    as_square: bool = False

    def fits(self, height: int, width: int) -> bool:
        """Whether a latent of that size can be cut into tokens, and these into squares."""
        if height % self.rows or width % self.columns:
            return False
        sides = self.grid(height, width)
        return math.prod(sides) == height * width // (self.rows * self.columns) and not any(s % SQUARE for s in sides)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens, for the matching."""
        down, across = height // self.rows, width // self.columns
        return (math.isqrt(down * across),) * 2 if self.as_square else (down, across)

    def of(self, latent: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, C rows columns] of a latent."""
        return rearrange(latent, "b c (h i) (w j) -> b (h w) (c i j)", i=self.rows, j=self.columns)

    def back(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The latent [B, C, height, width] of tokens."""
        return rearrange(
            tokens,
            "b (h w) (c i j) -> b c (h i) (w j)",
            i=self.rows,
            j=self.columns,
            h=height // self.rows,
            w=width // self.columns,
        )


def merged_away(count: int, share: float) -> int:
    """How many of `count` tokens are merged into others at a ratio."""
    return int(share * count + 1e-9)


def matching(tokens: torch.Tensor, grid: tuple[int, int], share: float) -> tuple[Merge, Merge]:
    """Which tokens [B, N, D] go together: what merges such, [B, N, D] to [B, N - merged, D], and what puts them back.

    Destinations are the top left of every square, so both ends know them. Merging keeps the mean.
    """
    gone = merged_away(tokens.shape[1], share)
    metric = tokens.detach() + 1e-12  # the cosine of a token that is all zero would be no number
    return bipartite_soft_matching_random2d(
        metric, grid[1], grid[0], SQUARE, SQUARE, gone, no_rand=True, generator=None
    )


def side_information_bits(count: int, share: float) -> int:
    """The bits that tell the receiver which of `count` tokens were merged, and into which destinations."""
    gone, destinations = merged_away(count, share), count // SQUARE**2
    if not gone:
        return 0
    return math.ceil(math.log2(math.comb(count - destinations, gone)) + gone * math.log2(destinations))
