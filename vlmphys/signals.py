"""Stopping a run from outside: the first SIGTERM or SIGINT asks it to save and leave after the optimizer step in hand."""

from __future__ import annotations

import signal
import time

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
