"""Decoding processes: results in order, and a task that crashes or hangs costs its own result only."""

from __future__ import annotations

import gc
import os
import signal
import struct
import time
from multiprocessing.connection import Connection

import pytest

from vlmphys.workers import AHEAD_PER_WORKER, Lost, run_in_order

pytestmark = pytest.mark.unit


def work(task: tuple[str, int]):
    """What a test asks of a worker; in a module of few imports, since each worker loads it."""
    kind, number = task
    if kind == "crash":
        os._exit(7)
    if kind == "hang":
        time.sleep(600)
    if kind == "slow":
        time.sleep(0.5)
    return number, os.getpid()


def dies_while_it_answers(number: int) -> int:
    """One task's worker ends as the out-of-memory killer ends it: when half of its answer is in the pipe."""
    if number == 2:
        (pipe,) = (thing for thing in gc.get_objects() if isinstance(thing, Connection) and thing.writable)
        os.write(pipe.fileno(), struct.pack("!i", 1000) + b"half of it")
        os._exit(9)
    return number


@pytest.mark.parametrize("tasks", (3, 5), ids=("its last", "others wait in its pipe"))
def test_a_worker_that_dies_in_the_middle_of_an_answer_costs_that_task_only(tasks):
    results = [*run_in_order(dies_while_it_answers, range(tasks), 1, 60.0, lambda number: None)]
    lost = results.pop(2)
    assert results == [0, 1, 3, 4][:tasks - 1] and isinstance(lost, Lost) and "exit status 9" in lost.reason


def second_chance(task: tuple[str, int]) -> tuple[str, int] | None:
    return ("good", -task[1]) if task[1] % 2 else None


def test_in_order_through_crashes_and_hangs():
    kinds = {2: "crash", 3: "crash", 5: "slow", 6: "hang"}
    tasks = [(kinds.get(number, "good"), number) for number in range(12)]
    results = list(run_in_order(work, tasks, 2, 3.0, second_chance))
    assert isinstance(results[2], Lost) and "exit status 7" in results[2].reason
    assert results[3][0] == -3  # tried again the other way
    assert isinstance(results[6], Lost) and "no answer in 3 s" in results[6].reason
    assert [results[number][0] for number in (0, 1, 4, 5, 7, 8, 9, 10, 11)] == [0, 1, 4, 5, 7, 8, 9, 10, 11]
    assert os.getpid() not in {result[1] for result in results if not isinstance(result, Lost)}


def blocks_interrupts(task: tuple[str, int]) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_from_its_start_on_a_worker_hears_no_ctrl_c_and_this_process_still_does():
    assert list(run_in_order(blocks_interrupts, [("good", number) for number in range(8)], 2, 60.0, second_chance)) == [True] * 8
    assert not blocks_interrupts(("good", 0))


def test_in_this_process():
    assert [result for result in run_in_order(work, [("good", number) for number in range(3)], 0, 1.0, second_chance)] == \
        [(number, os.getpid()) for number in range(3)]


def test_what_waits_for_its_turn_is_bounded():
    """A slow reader of results must not make them pile up: only so many tasks are handed out ahead."""
    taken = []

    class Tasks(list):
        def __getitem__(self, index):
            taken.append(index)
            return super().__getitem__(index)

    results = run_in_order(work, Tasks([("slow", 0)] + [("good", number) for number in range(1, 60)]), 2, 60.0, second_chance)
    assert next(results)[0] == 0
    assert max(taken) <= 2 * AHEAD_PER_WORKER
    results.close()
