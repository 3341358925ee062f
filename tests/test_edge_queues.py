"""The queues of the edge servers and what keeps them going, without Ray: the servers live in the test's process."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from edge_helpers import LocalCluster, Recorder
from helpers import make
from hypothesis import given, settings
from hypothesis import strategies as st

from common.parameters import ParameterError
from dedgeai.configuration import ServerParameters
from dedgeai.edge_server import GREY_PIXEL, Batch, SimulatedCompute
from dedgeai.measurement import measure_profile
from dedgeai.queues import PLACES_SECONDS, Call, Queues, Server
from dedgeai.tasks import Made, Task


def task(number: int, steps: int = 10, **more) -> Task:
    return Task(number, "a", steps, number, 1, 1, 0, **more)


def numbers(tasks: list[Task]) -> list[int]:
    return [task.number for task in tasks]


def run(
    story: Callable[[LocalCluster, Recorder], Awaitable[None]],
    rates: tuple[float, ...],
    compute: type[SimulatedCompute] = SimulatedCompute,
    **config,
) -> Recorder:
    """Tell a story about started servers that take so many seconds for a step. Returns what their owner was told."""
    owner, zeros = Recorder(), (0.0,) * len(rates)

    async def whole() -> None:
        parameters = make(ServerParameters, num_servers=len(rates), **config)
        cluster = LocalCluster(parameters, functools.partial(compute, rates, zeros, zeros, 0), owner)
        await cluster.start()
        cluster.calibrate(np.array(rates), 0.0)
        await story(cluster, owner)
        await cluster.close()

    asyncio.run(asyncio.wait_for(whole(), 20))
    assert not owner.of("broken")
    return owner


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def ends(owner: Recorder) -> dict[int, object]:
    """Image, error or None of each task that ended; each did once."""
    made = {task.number: image or error or None for _, task, image, error, _ in owner.of("made")}
    assert len(made) == len(owner.of("made"))
    return made


# --- what goes where ---


@pytest.mark.alone
@pytest.mark.parametrize(("rebalance", "longest"), [(True, 10), (False, 20)])
def test_a_server_that_never_had_work_takes_over_half_of_a_queue(rebalance, longest):
    async def story(cluster: LocalCluster, owner: Recorder) -> None:
        began = time.monotonic()
        cluster.send({0: [task(k) for k in range(20)]})
        await until(lambda: not cluster.where)
        assert longest <= (time.monotonic() - began) / 0.1 < longest + 3

    owner = run(story, (0.01, 0.01), rebalance=rebalance)
    assert [(server, numbers(tasks)) for server, tasks in owner.of("moved")] == [(1, list(range(10, 20)))][:rebalance]
    for server in (0, 1):  # each in order
        made = [task.number for s, task, *_ in owner.of("made") if s == server]
        assert made == sorted(made)


class Idle(Queues):
    """Servers that are up and never get on."""

    def __init__(self, rates: list[float], **config) -> None:
        self.owner = Recorder()
        super().__init__(make(ServerParameters, num_servers=len(rates), **config), self.owner)
        self.calibrate(np.array(rates), 0.5)
        for server in self.servers:
            server.up = True

    def begin(self, server: Server, call: Call) -> None:
        pass


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.sampled_from([0.2, 1.0, 1.0, 3.0]))
def test_what_is_taken_over_makes_both_servers_end_as_soon_as_can_be(steps, rate):
    async def story() -> None:
        cluster = Idle([1.0, rate])
        tasks = [task(k, z) for k, z in enumerate(steps)]
        cluster.servers[1].up = False  # it comes when the other one has begun
        cluster.send({0: tasks})
        cluster.servers[1].up = True
        cluster.settle()
        works = [z + 0.5 for z in steps]
        end = {k: max(sum(works[: len(works) - k]), rate * sum(works[len(works) - k :])) for k in range(len(works))}
        stayed, moved = ([*(t for c in s.calls for t in c.tasks), *s.waiting.values()] for s in cluster.servers)
        assert stayed + moved == tasks and stayed
        assert end[len(moved)] == pytest.approx(min(end.values()), rel=1e-3)
        before = len(cluster.owner.told)
        cluster.settle()  # and that is that
        assert len(cluster.owner.told) == before

    asyncio.run(story())


kinds = st.tuples(st.sampled_from([10, 12]), st.sampled_from([None, 0, 1, 2]))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(kinds, max_size=14), st.integers(1, 4))
def test_batches_hold_the_oldest_task_then_its_request_then_others_of_its_kind(found, most):
    cluster = Idle([1.0])
    (server,) = cluster.servers
    cluster.put(server, [task(k, steps, request=request) for k, (steps, request) in enumerate(found)])
    while server.waiting:
        before = list(server.waiting.values())
        batch = server.next_batch(most)
        oldest = before[0]
        alike = [task for task in before if task.kind == oldest.kind]
        own = [
            task for task in alike if task is oldest or (task.request is not None and task.request == oldest.request)
        ]
        assert batch == (own + [task for task in alike if task not in own])[:most]
        assert list(server.waiting.values()) == [task for task in before if task not in batch]
        assert server.work == sum(task.steps for task in server.waiting.values())


# --- how servers and tasks end ---


def test_a_server_that_dies_hands_its_tasks_back_and_rejoins():
    async def story(cluster: LocalCluster, owner: Recorder) -> None:
        tasks = [task(k) for k in range(5)]
        cluster.send({0: tasks})
        server = cluster.servers[0]
        old = server.calls[0]
        assert len(server.calls) == 2 and len(server) == 5  # one runs, one is sent ahead
        await asyncio.sleep(0.01)
        cluster.kill(server)
        cluster.kill(cluster.servers[1])
        await until(lambda: len(owner.of("lost")) == 2)
        assert [(s, numbers(ran), numbers(rest)) for s, ran, rest in sorted(owner.of("lost"))] == [
            (0, [0], [1, 2, 3, 4]),
            (1, [], []),
        ]
        assert not server.up and not len(server) and cluster.backlog_seconds().tolist() == [0, 0]
        await until(lambda: len(owner.of("joined")) == 2)
        assert server.starts == 2
        cluster.send({0: tasks})
        cluster.ended(server, old, Made([b"late"], 0.1))  # of the call before the death
        await until(lambda: not cluster.where)
        assert set(ends(owner)) == set(range(5)) and b"late" not in ends(owner).values()

    run(story, (0.005, 0.005), rebalance=False)


def test_a_call_that_fails_alone_is_a_death_too_and_what_the_server_still_has_is_dropped():
    async def story(cluster: LocalCluster, owner: Recorder) -> None:
        cluster.send({0: [task(0, 100), task(1)]})
        await asyncio.sleep(0.02)
        handle = cluster.servers[0].handle
        next(call for call in handle.calls if call.get_coro().cr_frame.f_locals["name"] == "run").cancel()
        handle.server, same = object(), handle.server  # as an actor that is out of reach
        await until(lambda: owner.of("lost"))
        handle.server = same
        await until(lambda: owner.of("joined"))
        assert cluster.servers[0].starts == 1
        cluster.send({0: [task(2, 1)]})
        began = time.monotonic()
        await until(lambda: not cluster.where)
        assert time.monotonic() - began < 0.5 and set(ends(owner)) == {2}

    run(story, (0.01,))


def test_a_server_without_a_result_is_started_again_and_one_that_is_only_busy_is_not():
    async def story(cluster: LocalCluster, owner: Recorder) -> None:
        cluster.send({0: [task(0, 1, scale=1e6), task(1)], 1: [task(k) for k in range(2, 12)]})
        await until(lambda: len(ends(owner)) == 10 and owner.of("joined"))
        assert [(s, numbers(ran), numbers(rest)) for s, ran, rest in owner.of("lost")] == [(0, [0], [1])]

    run(story, (0.01, 0.01), job_timeout=0.4, rebalance=False)


def test_steps_are_told_while_a_task_runs():
    async def story(cluster: LocalCluster, owner: Recorder) -> None:
        cluster.send({0: [task(0, 500), task(1, 500)]})
        await until(lambda: not cluster.where)

    owner = run(story, (0.001,), batch_size=2)
    steps = [given[0] for (given,) in owner.of("progress") if given[0] == given[1]]
    assert 3 <= len(steps) <= 5 and steps == sorted(set(steps)) and steps[-1] <= 500
    assert steps[0] == pytest.approx(125, abs=60)


def test_cancelled_tasks_end_at_once_or_at_the_next_step_and_spare_the_others():
    async def story(cluster: LocalCluster, owner: Recorder) -> None:
        cluster.send({0: [task(k, 20) for k in range(4)] + [task(4, 1), task(5, 1)]})
        assert cluster.cancel(4) and not len(owner.of("made")) and cluster.place(4) is None
        assert cluster.cancel(0) and cluster.place(0) is None  # 0 and 1 run together
        assert not cluster.cancel(0) and not cluster.cancel(99)
        await until(lambda: owner.of("made"))
        assert ends(owner) == {1: GREY_PIXEL}
        began = time.monotonic()
        assert cluster.cancel(2) and not cluster.cancel(3)
        await until(lambda: 3 in ends(owner))
        assert time.monotonic() - began < 0.18 and ends(owner)[3] is None and 2 not in ends(owner)
        await until(lambda: not cluster.where)
        assert ends(owner)[5] == GREY_PIXEL

    run(story, (0.01,), batch_size=2)


def test_who_was_cancelled_in_a_batch_is_not_lost_with_its_server():
    async def story(cluster: LocalCluster, owner: Recorder) -> None:
        cluster.send({0: [task(k, 50) for k in range(4)]})
        await asyncio.sleep(0.05)  # it works
        assert cluster.cancel(1)
        cluster.servers[0].handle.die()
        await until(lambda: owner.of("lost"))
        assert [numbers(tasks) for tasks in owner.of("lost")[0][1:]] == [[0, 2], [3]]

    run(story, (0.01,), batch_size=3)


def test_a_batch_that_was_sent_ahead_and_cancelled_does_not_run():
    class Counting(SimulatedCompute):
        ran: list[int] = []  # noqa: RUF012

        async def run(self, batch: Batch, at_once: bool) -> list[bytes]:
            self.ran.extend(numbers(batch.tasks))
            return await super().run(batch, at_once)

    async def story(cluster: LocalCluster, owner: Recorder) -> None:
        cluster.send({0: [task(0), task(1), task(2)]})
        assert len(cluster.servers[0].calls) == 2 and not cluster.cancel(1)
        await until(lambda: not cluster.where)
        assert ends(owner) == {0: GREY_PIXEL, 1: None, 2: GREY_PIXEL} and Counting.ran == [0, 2]

    run(story, (0.005,), Counting)


class Failing(SimulatedCompute):
    """Fails on tasks of one step."""

    async def run(self, batch: Batch, at_once: bool) -> list[bytes]:
        if batch.tasks[0].steps == 1:
            raise ValueError("no such colour\nand more")
        return await super().run(batch, at_once)


def test_what_fails_is_said_in_one_line_and_the_server_goes_on():
    async def story(cluster: LocalCluster, owner: Recorder) -> None:
        cluster.send({0: [task(0, 1), task(1), task(2, 1)]})
        await until(lambda: not cluster.where)

    owner = run(story, (0.001,), Failing)
    assert ends(owner) == {0: "no such colour", 1: GREY_PIXEL, 2: "no such colour"}
    assert not owner.of("lost")


def test_nothing_begins_while_paused():
    async def story(cluster: LocalCluster, owner: Recorder) -> None:
        cluster.send({0: [task(k) for k in range(9)]})
        cluster.pause(True)
        await cluster.drained()
        assert set(ends(owner)) == {0, 1} and len(cluster.servers[0]) == 7  # what it had
        await asyncio.sleep(0.02)
        assert len(owner.of("made")) == 2
        cluster.pause(False)
        await until(lambda: not cluster.where)
        assert len(ends(owner)) == 9

    run(story, (0.001,))


# --- how long it takes ---


@pytest.mark.alone
def test_places_in_a_long_queue_are_right_and_cheap():
    async def story() -> None:
        cluster = Idle([0.1], batch_size=2)
        tasks = [task(k, 10 + k % 3) for k in range(10_000)]
        cluster.send({0: tasks})
        assert cluster.place(0) == (0, pytest.approx(2.1, abs=0.01)) == cluster.place(3)  # 0 and 3 are a batch
        assert cluster.place(9_999)[0] == 9_999 and cluster.place(10_000) is None
        for number in (1, 2, 500):
            assert cluster.cancel(number)
        await asyncio.sleep(PLACES_SECONDS)
        expected = [t for t in tasks if t.number not in (0, 1, 2, 3, 500)]
        for k in (0, 400, 600, 9_000):
            seconds = 0.1 * (21 + sum(t.steps + 0.5 for t in expected[: k + 1]))
            assert cluster.place(expected[k].number) == (k + 2, pytest.approx(seconds, abs=0.5))
        began = time.process_time()
        for number in range(10_000, 15_000):
            cluster.send({0: [task(number)]})
            assert cluster.place(number)[0] == len(cluster.servers[0]) - 1
            cluster.place(number - 5_000)
            cluster.cancel(number - 5_000)
        assert time.process_time() - began < 1.0

    asyncio.run(story())


def test_the_backlog_goes_by_the_speed_of_the_last_batches():
    async def story(cluster: LocalCluster, owner: Recorder) -> None:
        cluster.calibrate(np.array([0.001, 0.01]), 0.0)  # as if the first one had been measured when it was fast
        cluster.send({0: [task(k) for k in range(20)], 1: [task(99, 1000)]})
        assert cluster.backlog_seconds() == pytest.approx([0.2, 10], abs=0.1)
        await until(lambda: len(owner.of("made")) == 10)
        assert cluster.servers[0].seconds_per_step > 0.005
        assert cluster.backlog()[0] == pytest.approx(0.2048 * cluster.backlog_seconds()[0] / 0.001, rel=0.1)

    run(story, (0.01, 0.01), rebalance=False)


@pytest.mark.alone
def test_a_profile_is_measured_over_deaths_and_a_failing_generator_is_named():
    async def story(cluster: LocalCluster, owner: Recorder) -> None:
        measuring = asyncio.ensure_future(measure_profile(cluster, ["a"], (5, 20), (1, 1), 2, {"model": "x"}))
        await asyncio.sleep(0.05)
        cluster.kill(cluster.servers[1])
        cluster.servers[0].life.cancel()  # as when it cannot be reached for a moment
        profile = await measuring
        assert profile.seconds_per_step == pytest.approx([0.002, 0.004], rel=0.15)
        assert profile.result_mbit == pytest.approx(8e-6 * len(GREY_PIXEL)) and cluster.owner is owner
        with pytest.raises(ParameterError, match=r"the generator failed: no such colour$"):
            await measure_profile(cluster, ["a"], (1, 2), (1, 1), 1, {})

    run(story, (0.002, 0.004), Failing)
