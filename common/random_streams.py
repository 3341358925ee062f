"""The independent random streams of the project: who draws from which, in one place.

A generator is seeded by its stream's number and by what tells its draws apart (a seed, an episode, a server), so no
draw disturbs another. A new purpose takes a new number; a number that is in use never changes, or results would.
"""

import enum

import numpy as np


class Stream(enum.IntEnum):
    """What random numbers are for; the number is the first that a generator is seeded by."""

    SCENARIO = 0  # capacities, link rates and task classes
    TRAINING_ARRIVALS = 1
    HELD_OUT_ARRIVALS = 2
    ACTIONS = 3  # what schedulers draw
    WEIGHTS = 4  # what networks start from
    EDGE_ARRIVALS = 6  # tasks of the edge system
    EDGE_DURATIONS = 7  # of simulated edge servers
    TABLE_FIT = 10  # arrivals that routing tables are fitted to
    PRACTICE = 11  # scenarios, arrivals and choices of practice
    BELIEFS = 20  # misjudged capacities
    VALIDATION_ARRIVALS = 21  # of evaluations during a training
    STATISTICS = 23  # which seeds a bootstrap draws again
    TRACE_TIMES = 30  # fractions of a second of a trace's requests
    TRACE_STATIONS = 31  # which base station a user belongs to
    TRACE_NOISE = 32  # of service times
    TRACE_OUTAGES = 33  # when servers fail and come back
    TRACE_CHOICES = 34  # what rules draw
    TRACE_SEARCH = 35  # candidates, segments and draws of an evolution strategy
    TRACE_SYNTHETIC = 36  # requests of the synthetic generator
    TRACE_EPISODES = 37  # which requests and which draw an episode has
    TRACE_GRADIENTS = 38  # segments, batches and weights of learning by gradients


def random_generator(stream: Stream, *numbers: int) -> np.random.Generator:
    """The generator of a stream for the given numbers, such as a seed and an episode."""
    return np.random.default_rng(np.random.SeedSequence([int(stream), *numbers]))
