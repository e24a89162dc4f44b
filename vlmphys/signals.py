"""Stopping a run from outside, and with which status a command ends: the first SIGTERM or SIGINT asks a run to save what it has and leave."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# One Ctrl-C reaches a process twice: from the terminal, and again from the launcher that passes it on. What comes this
# soon after the first signal is taken for its echo.
ECHO_SECONDS = 2.0


class StopRequests:
    """While inside, SIGTERM and SIGINT set `requested`; a later one (after `ECHO_SECONDS`) acts as it did before.

    For the main thread, which alone may set handlers.
    """

    def __init__(self) -> None:
        self.number: int | None = None      # of the first signal
        self._since = 0.0
        self._before: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self.number is not None

    def __enter__(self) -> StopRequests:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: object) -> None:
        if self.number is None:
            self.number, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > ECHO_SECONDS:
            self.__exit__()
            signal.raise_signal(number)


class Stopped(Exception):
    """A run that left early, whole, because a signal asked for it. `number`: the signal."""

    def __init__(self, message: str, number: int | None):
        super().__init__(message)
        # Another rank may have had the signal.
        self.number = number or signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """A SIGTERM that nothing else waits for: it takes the way of a Ctrl-C, past all that tidies up."""


def stop_quietly(interrupted: str = "stopped") -> None:
    """From here on a first SIGTERM or SIGINT ends the process with one line and no traceback: for the seconds in which a command imports, before
    `exit_status` takes over. One that is ignored, as behind a shell's `&`, stays so."""
    def end(number: int, _frame: object) -> None:
        print(interrupted, file=sys.stderr, flush=True)
        os._exit(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


@contextmanager
def _raising() -> Iterator[None]:
    """While inside, the first SIGTERM raises Terminated and SIGINT KeyboardInterrupt; nothing changes for signals that are ignored, and outside the
    main thread, which alone may set handlers."""
    def terminate(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)   # whoever asks twice must not cut short what tidies up
        raise Terminated

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number, handler in ((signal.SIGTERM, terminate), (signal.SIGINT, signal.default_int_handler)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_status(command: Callable[[], int | None], interrupted: str = "stopped") -> int:
    """Run the work of a command's `main`, and return its exit status: what the work returns (0 for None); 2 for a ValueError, whose sentence goes to
    stderr; 128 and the signal's number for Stopped, and for a Ctrl-C or SIGTERM that nothing else waits for, of which stderr says `interrupted`."""
    try:
        with _raising():
            return command() or 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.number
    except KeyboardInterrupt as stopped:
        print(interrupted, file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)
