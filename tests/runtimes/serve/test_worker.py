"""The queue before the model: bounded, on time, and free again as soon as nobody waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pulse_edge.errors import PulseEdgeError, UserError
from pulse_edge.runtimes.serve.errors import Refusal
from pulse_edge.runtimes.serve.worker import Job, Stopped, Worker


async def stays() -> bool:
    return False


async def all_of(job: Job, is_gone: Callable[[], Awaitable[bool]] = stays) -> list[Any]:
    return [event async for event in job.events(is_gone)]


def run(test: Callable[[Worker], Awaitable[None]], size: int = 2) -> None:
    """Run a coroutine beside a worker."""

    async def whole() -> None:
        worker = Worker(size)
        worker.start(lambda: None)
        try:
            await asyncio.wait_for(test(worker), 20)
        finally:
            await asyncio.to_thread(worker.stop)

    asyncio.run(whole())


def wait_for_halt(job: Job) -> None:
    while not job.halted():
        time.sleep(0.005)
    job.check()


def test_events_come_in_order_and_end() -> None:
    async def test(worker: Worker) -> None:
        job = worker.admit(10)
        worker.submit(job, lambda job: [job.emit("n", n) for n in range(5)] and None)
        assert await all_of(job) == [("n", n) for n in range(5)]
        assert worker.taken == 0

    run(test)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def test(worker: Worker) -> None:
        jobs = [worker.admit(10) for _ in range(2)]
        for _ in range(3):
            with pytest.raises(Refusal) as refused:
                worker.admit(10)
            assert refused.value.status == 429
            assert int(refused.value.headers()["retry-after"]) >= 1
        jobs[0].done()
        jobs[0].done()  # a place is given back once
        worker.admit(10)
        with pytest.raises(Refusal):
            worker.admit(10)

    run(test)


def test_a_deadline_passes_while_it_runs_and_while_it_waits() -> None:
    async def test(worker: Worker) -> None:
        ran = []
        first, second = worker.admit(0.3), worker.admit(0.3)
        worker.submit(first, wait_for_halt)
        worker.submit(second, lambda job: ran.append(1))
        for job in (first, second):
            with pytest.raises(Refusal) as refused:
                await all_of(job)
            assert refused.value.status == 504
        assert ran == []

    run(test)


def test_a_step_that_does_not_look_up_does_not_hold_the_client_beyond_the_deadline() -> None:
    async def test(worker: Worker) -> None:
        release = threading.Event()
        job = worker.admit(0.2)
        worker.submit(job, lambda job: release.wait(10) and None)
        with pytest.raises(Refusal) as refused:
            await all_of(job)
        assert refused.value.status == 504
        assert worker.taken == 1  # the place is not given away while the thread is in it
        release.set()
        while worker.taken:
            await asyncio.sleep(0.01)

    run(test)


def test_a_client_that_leaves_frees_the_worker() -> None:
    async def test(worker: Worker) -> None:
        async def gone() -> bool:
            return True

        job = worker.admit(1000)
        worker.submit(job, wait_for_halt)
        with pytest.raises(Stopped):
            await all_of(job, gone)
        while worker.taken:
            await asyncio.sleep(0.01)

    run(test)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("The question is too long."), 400),
        (PulseEdgeError("not a number"), 503),
        (MemoryError(), 503),
        (ZeroDivisionError("secret"), 500),
        (Refusal(422, "photo_refused", "Blurred."), 422),
    ],
)
def test_an_error_ends_the_job_and_not_the_thread(error: Exception, status: int) -> None:
    async def test(worker: Worker) -> None:
        def fail(job: Job) -> None:
            raise error

        job = worker.admit(10)
        worker.submit(job, fail)
        with pytest.raises(Refusal) as refused:
            await all_of(job)
        assert refused.value.status == status
        assert "secret" not in str(refused.value)
        job = worker.admit(10)
        worker.submit(job, lambda job: job.emit("fine", 1))
        assert await all_of(job) == [("fine", 1)]

    run(test)


def test_at_shutdown_what_waits_is_told_at_once_and_what_runs_gets_a_moment() -> None:
    async def test(worker: Worker) -> None:
        begun = threading.Event()

        def work(job: Job) -> None:
            begun.set()
            time.sleep(0.3)
            job.check()
            job.emit("done", "whole")

        running, waiting = worker.admit(100), worker.admit(100)
        worker.submit(running, work)
        worker.submit(waiting, wait_for_halt)
        await asyncio.to_thread(begun.wait)
        worker.drain()
        assert await all_of(running) == [("done", "whole")]
        with pytest.raises(Refusal) as refused:
            await all_of(waiting)
        assert refused.value.code == "stopping"
        with pytest.raises(Refusal) as refused:
            worker.admit(1)
        assert refused.value.code == "stopping"

    run(test)
