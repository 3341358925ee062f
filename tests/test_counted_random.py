"""Random numbers by their place: the published values of Philox, their distribution, and what makes them in threads."""

import math

import numpy as np
import pytest

from common.counted_random import draw, key_of, philox
from common.random_streams import Stream
from fused.random_lanes import drawn

KEY = key_of(Stream.ACTIONS, 3, 7)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_its_published_words(counter, key, expected):
    """The known answers that the authors ship with philox4x32-10."""
    assert philox(np.array(counter, np.uint64)[:, None], key)[:, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("shape", [(5,), (3, 64), (4, 2, 3, 50), (20, 4, 20, 130), (1, 1, 1)])
def test_compiled_numbers_are_the_plain_ones_to_the_last_bit(kind, shape):
    for call in (0, 1, 4_000_000_000):
        assert np.array_equal(drawn(kind, KEY, call, shape), draw(kind, KEY, call, shape))


def test_numbers_are_distributed_as_they_should_be():
    """Moments within five standard errors, and every sixteenth of the distribution as often as any other."""
    count = 2**20
    uniform, normal = (draw(kind, KEY, 0, (16, count // 16)).ravel().astype(float) for kind in ("uniform", "normal"))
    assert uniform.min() >= 0 and uniform.max() < 1
    for values, moments in ((uniform - 0.5, (0, 1 / 12, 0, 1 / 80)), (normal, (0, 1, 0, 3))):
        for power, moment in enumerate(moments, 1):
            powers = values**power
            assert abs(powers.mean() - moment) < 5 * powers.std() / math.sqrt(count)
    through = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in normal[: 2**16]])
    for values in (uniform, through):
        found = np.bincount((values * 16).astype(int), minlength=16)
        expected = len(values) / 16
        assert ((found - expected) ** 2 / expected).sum() < 45  # chi-square of 15 degrees: once in 10,000 times
    pairs = np.corrcoef(normal[:-1], normal[1:])[0, 1], np.corrcoef(normal[:-16], normal[16:])[0, 1]
    assert max(map(abs, pairs)) < 5 / math.sqrt(count)


def test_a_number_depends_on_its_place_only():
    whole = draw("normal", KEY, 5, (6, 3, 70))
    assert np.array_equal(draw("normal", KEY, 5, (2, 3, 70)), whole[:2])  # whatever stations there are besides
    assert np.array_equal(draw("normal", KEY, 5, (6, 2, 70)), whole[:, :2])  # and rows
    seen = [whole, draw("normal", KEY, 6, (6, 3, 70)), draw("normal", key_of(Stream.ACTIONS, 3, 8), 5, (6, 3, 70))]
    assert len(np.unique(np.concatenate([part.ravel() for part in seen]))) > 0.999 * 3 * whole.size
