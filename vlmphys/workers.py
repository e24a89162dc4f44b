"""Processes that decode: one that crashes or hangs takes its own clip with it, not the run. Results come in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Callable, Iterator, Sequence

# Tasks handed out ahead of the oldest unfinished one: results wait in memory for their turn, this bounds how many.
AHEAD_PER_WORKER = 4
# Tasks that a worker holds: the one it computes, and one that it finds when that is done, however long its result waits to be fetched.
TASKS_PER_WORKER = 2
STARTUP_LIMIT_SECONDS = 300.0
READY = "ready"


@dataclass(frozen=True)
class Lost:
    """In place of a result: the worker died or was stopped; `reason` says which."""

    reason: str


@dataclass(eq=False)
class _Worker:
    process: Any
    pipe: Connection
    ready: bool = False
    tasks: deque[tuple[int, Any]] = field(default_factory=deque)    # (number, task), the first one being computed
    deadline: float = 0.0


def run_in_order(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int, limit_seconds: float,
                 retry: Callable[[Any], Any | None]) -> Iterator[Any]:
    """Yield `function(task)` for each task, in order, computed by `workers` spawned processes (0: in this one).

    A task that kills its worker, or takes longer than `limit_seconds`, is tried once more as `retry(task)` (None: not again); its result
    is `Lost` where that is of no use. `function` and tasks must be picklable, and `function` returns its failures, it does not raise them.
    """
    if workers == 0:
        yield from map(function, tasks)
        return
    crew = _Crew(function, workers, limit_seconds)
    results: dict[int, Any] = {}
    again: dict[int, Any] = {}
    retried: set[int] = set()
    due = handed = 0
    try:
        while due < len(tasks):
            while (worker := crew.with_room()) is not None:
                if again:
                    index = min(again)
                    crew.give(worker, index, again.pop(index))
                elif handed < min(len(tasks), due + AHEAD_PER_WORKER * workers):
                    crew.give(worker, handed, tasks[handed])
                    handed += 1
                else:
                    break
            found, untouched = crew.collect()
            again.update(untouched)
            for index, result in found:
                if isinstance(result, Lost) and index not in retried:
                    retried.add(index)
                    second = retry(tasks[index])
                    if second is not None:
                        again[index] = second
                        continue
                results[index] = result
            while due in results:
                yield results.pop(due)
                due += 1
    finally:
        crew.stop()


class _Crew:
    def __init__(self, function: Callable[[Any], Any], workers: int, limit_seconds: float):
        # Spawned, not forked: decoders and torch hold threads, and a fork in the middle of one hangs now and then.
        self.context = multiprocessing.get_context("spawn")
        self.function, self.limit_seconds = function, limit_seconds
        self.workers: list[_Worker] = []
        for _ in range(workers):
            self.workers.append(self._start())

    def _start(self) -> _Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(self.function, theirs), daemon=True)
        # A worker takes over which signals are blocked: a Ctrl-C, which reaches it too, must not end its imports with a traceback. One that comes
        # meanwhile reaches this process when it is done.
        resource_tracker.ensure_running()       # its start, which is part of the first worker's, would unblock it again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Worker(process, ours)

    def with_room(self) -> _Worker | None:
        """The worker with the fewest tasks; None where all have as many as they may."""
        worker = min(self.workers, key=lambda worker: len(worker.tasks))
        return worker if len(worker.tasks) < TASKS_PER_WORKER else None

    def give(self, worker: _Worker, index: int, task: Any) -> None:
        if not worker.tasks:
            worker.deadline = time.monotonic() + (self.limit_seconds if worker.ready else STARTUP_LIMIT_SECONDS)
        worker.tasks.append((index, task))
        try:
            worker.pipe.send(task)
        except ConnectionError:
            pass  # it died while idle: `collect` finds its end of the pipe closed, and says so

    def collect(self) -> tuple[list[tuple[int, Any]], list[tuple[int, Any]]]:
        """Results that are ready, possibly none, and the tasks that a worker which is no more had not begun; waits for a message or for the
        first time limit."""
        busy = [worker for worker in self.workers if worker.tasks]
        patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
        ready = set(wait([worker.pipe for worker in busy], timeout=patience))
        found, untouched = [], []
        for worker in busy:
            if worker.pipe in ready:
                try:
                    self._take(worker, found)
                except (EOFError, OSError):     # it may have died in the middle of an answer, too
                    worker.process.join()
                    found.append((worker.tasks.popleft()[0], Lost(f"the reader's process died (exit status {worker.process.exitcode})")))
                    untouched += self._replace(worker)
            elif time.monotonic() >= worker.deadline:
                limit = self.limit_seconds if worker.ready else STARTUP_LIMIT_SECONDS
                found.append((worker.tasks.popleft()[0], Lost(f"the reader gave no answer in {limit:g} s")))
                untouched += self._replace(worker)
        return found, untouched

    def _take(self, worker: _Worker, found: list[tuple[int, Any]]) -> None:
        """One message of a worker: that its imports are done, from when on its task's time counts, or its task's result."""
        message = worker.pipe.recv()
        worker.deadline = time.monotonic() + self.limit_seconds
        if worker.ready:
            found.append((worker.tasks.popleft()[0], message))
        else:
            assert message == READY
            worker.ready = True

    def _replace(self, worker: _Worker) -> list[tuple[int, Any]]:
        """Put a fresh worker in this one's place; returns the tasks that it still held."""
        self._end(worker)
        self.workers[self.workers.index(worker)] = self._start()
        return list(worker.tasks)

    def stop(self) -> None:
        for worker in self.workers:
            self._end(worker)

    @staticmethod
    def _end(worker: _Worker) -> None:
        worker.pipe.close()
        worker.process.kill()
        worker.process.join()


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    """A worker's life: it ends with the pipe, so that none outlives its parent, however that one ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pipe.send(READY)
    except ConnectionError:
        return
    while True:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionError):     # reset: the parent died with answers that it had not read
            return
        result = function(task)
        try:
            pipe.send(result)
        except ConnectionError:
            return
