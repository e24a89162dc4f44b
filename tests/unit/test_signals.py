"""The first signal asks, its echo is ignored, a later one acts as it always did."""

from __future__ import annotations

import signal

import pytest

from vlmphys import signals
from vlmphys.signals import Stopped, StopRequests

pytestmark = pytest.mark.unit


def test_a_first_signal_asks_and_its_echo_changes_nothing():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequests() as stop:
        assert not stop.requested
        signal.raise_signal(signal.SIGINT)
        assert stop.requested and stop.number == signal.SIGINT
        signal.raise_signal(signal.SIGTERM)     # a launcher passes the same Ctrl-C on
        assert stop.number == signal.SIGINT
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_later_signal_acts_as_before(monkeypatch):
    monkeypatch.setattr(signals, "ECHO_SECONDS", -1.0)
    # A shell starts what runs behind it with SIGINT ignored, these tests too.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequests():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_a_rank_that_had_no_signal_itself_reports_a_termination():
    assert Stopped("after step 3", None).number == signal.SIGTERM and Stopped("", signal.SIGINT).number == signal.SIGINT
