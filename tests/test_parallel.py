from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from dsgan_datasets import DSGANIterableDataset, LabeledGenerator
from dsgan_datasets.parallel import Workspace, ahead, parallel_map

CPU = torch.device("cpu")


def seen_by_a_new_thread() -> int:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return seen[0]


def test_work_sees_one_thread_and_nobody_else_does() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        inside = parallel_map(lambda _: (torch.get_num_threads(), torch.is_grad_enabled()), range(7), CPU)
        assert inside == [(1, False)] * 7
        assert torch.get_num_threads() == 3 and seen_by_a_new_thread() == 3 and torch.is_grad_enabled()
    finally:
        torch.set_num_threads(before)


def test_order_is_kept_and_calls_may_nest() -> None:
    def outer(i: int) -> list[int]:
        return parallel_map(lambda j: i * 10 + j, range(3), CPU)

    assert parallel_map(outer, range(4), CPU) == [[i * 10 + j for j in range(3)] for i in range(4)]


def test_threads_without_work_help_the_one_that_has_some() -> None:
    """Two parts of one item wait for each other: they can only end if two threads compute them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = threading.Barrier(2, timeout=10)

        def outer(_: int) -> list[int]:
            return parallel_map(lambda part: together.wait() * 0 + part, range(2), CPU)

        assert parallel_map(outer, range(1), CPU) == [[0, 1]]
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_shared_part_is_raised() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            parallel_map(lambda _: parallel_map(lambda j: 1 // (j - 5), range(8), CPU), range(1), CPU)
        assert parallel_map(lambda i: i, range(4), CPU) == [0, 1, 2, 3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which Windows lacks")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_fork_waits_until_nobody_computes(threads: int) -> None:
    """Also if the work that it waits for has parts of its own; and both processes can go on computing."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    began, ended = threading.Event(), []

    def compute(item: int) -> None:
        began.set()
        time.sleep(0.4)
        parallel_map(lambda part: ended.append((item, part)), range(2), CPU)

    def in_the_child() -> None:
        sys.exit(0 if len(ended) == 4 and parallel_map(abs, [-1, 2], CPU) == [1, 2] else 3)

    try:
        other = threading.Thread(target=lambda: parallel_map(compute, range(2), CPU), daemon=True)
        other.start()
        assert began.wait(10)
        child = multiprocessing.get_context("fork").Process(target=in_the_child, daemon=True)
        child.start()
        child.join(30)
        assert child.exitcode == 0
        other.join(10)
        assert parallel_map(abs, [-3], CPU) == [3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which Windows lacks")
def test_a_child_of_a_thread_that_computes_holds_forks_off_in_turn() -> None:
    began, ended = threading.Event(), []

    def compute(_: int) -> None:
        began.set()
        time.sleep(0.4)
        ended.append(True)

    def in_the_child() -> None:
        other = threading.Thread(target=lambda: parallel_map(compute, [0], CPU), daemon=True)
        other.start()
        began.wait(10)
        if (pid := os.fork()) == 0:
            os._exit(0 if ended else 3)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def fork(_: int) -> int:
        if (pid := os.fork()) == 0:
            return 0  # the child, too, comes back from what it computed
        return pid

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (pid,) = parallel_map(fork, [0], CPU)
        if pid == 0:
            in_the_child()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


def test_working_memory_is_used_again_by_its_thread_alone() -> None:
    first = Workspace.take("test", (4, 5), torch.float32, CPU)
    assert Workspace.take("test", (7,), torch.float32, CPU).data_ptr() == first.data_ptr()
    assert Workspace.take("another", (4, 5), torch.float32, CPU).data_ptr() != first.data_ptr()
    elsewhere: list[int] = []
    thread = threading.Thread(
        target=lambda: elsewhere.append(Workspace.take("test", (4, 5), torch.float32, CPU).data_ptr())
    )
    thread.start()
    thread.join()
    assert elsewhere != [first.data_ptr()]


def test_working_memory_taken_in_inference_mode_can_be_written_to_later() -> None:
    with torch.inference_mode():
        Workspace.take("inference", (3,), torch.float32, CPU)
    Workspace.take("inference", (3,), torch.float32, CPU).add_(1)


def test_a_product_that_threads_would_change() -> None:
    """Without this module, the last bits of this product differ between one and three threads."""
    torch.manual_seed(0)
    a, b = torch.randn(64, 24), torch.randn(24, 24)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(parallel_map(lambda _: a @ b, range(2), CPU))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, results[0][0]) for pair in results for x in pair)


@pytest.mark.parametrize("workers", [1, 3])
def test_ahead_keeps_the_order_and_takes_few_items_in_advance(workers: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            taken.append(i)
            yield i

    results = ahead(lambda i: i * i, items(), workers, length=4)
    assert next(results) == 0 and taken == list(range(5))
    assert list(results) == [i * i for i in range(1, 20)]


def test_an_error_ahead_is_raised_at_its_place() -> None:
    results = ahead(lambda i: 1 // (i - 2), range(5), workers=2)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_consumer_may_stop_early() -> None:
    done: list[int] = []
    results = ahead(done.append, itertools.count(), workers=1, length=3)
    next(results)
    results.close()
    assert len(done) <= 4


def within_seconds(call: Callable[[], Any]) -> Any:
    """What a call returns or raises; a failure of the test if it does not end."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(call())
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.real_start = True  # type: ignore[attr-defined]
    thread.start()
    thread.join(30)
    assert ended, "it hangs"
    return ended[0]


@pytest.fixture
def few_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Has the system refuse more than that many threads at a time, as the pids limit of a container does."""
    start = threading.Thread.start
    before = torch.get_num_threads()

    def limit(most: int) -> None:
        started: list[threading.Thread] = []

        def limited(self: threading.Thread) -> None:
            if not hasattr(self, "real_start"):
                if sum(thread.is_alive() for thread in started) >= most:
                    raise RuntimeError("can't start new thread")
                started.append(self)
            start(self)

        monkeypatch.setattr(threading.Thread, "start", limited)

    yield limit
    torch.set_num_threads(before)


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("work", ["parallel_map", "ahead"])
def test_fewer_threads_than_asked_for_do_the_same_work(
    few_threads: Callable[[int], None], work: str, most: int
) -> None:
    threads = 11 + most  # no pool of another test has this many

    def squares() -> list[int]:
        torch.set_num_threads(threads)
        if work == "ahead":
            return list(ahead(lambda i: i * i, range(40), threads))
        squared = parallel_map(lambda i: (i * i, torch.get_num_threads()), range(40), CPU)
        assert {number for _, number in squared} == {1} and torch.get_num_threads() == threads
        return [square for square, _ in squared]

    few_threads(most)
    with pytest.warns(RuntimeWarning, match=rf"starts only \d of {threads} threads.*pids.max"):
        assert within_seconds(squares) == [i * i for i in range(40)]


@pytest.mark.parametrize("work", ["parallel_map", "ahead", "stream"])
def test_without_any_thread_there_is_a_clear_error(
    few_threads: Callable[[int], None], unfiltered: LabeledGenerator, work: str
) -> None:
    def call() -> Any:
        torch.set_num_threads(17)
        if work == "stream":
            return next(iter(DSGANIterableDataset(unfiltered)))
        return list(parallel_map(abs, range(9), CPU) if work == "parallel_map" else ahead(abs, range(9), 3))

    few_threads(0)
    error = within_seconds(call)
    assert isinstance(error, RuntimeError) and "raise the limit of threads" in str(error), error
