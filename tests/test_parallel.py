from __future__ import annotations

import threading

import torch

from dsgan_datasets.parallel import parallel_map

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
