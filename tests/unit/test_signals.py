"""The first signal asks, its echo is ignored, a later one acts as it always did."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from vlmphys import signals
from vlmphys.signals import Stopped, StopRequests, exit_status

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


def test_a_termination_takes_the_way_of_a_ctrl_c_past_what_tidies_up(capsys):
    tidied, before = [], signal.getsignal(signal.SIGTERM)

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)     # a second one does not cut it short
            tidied.append(True)

    assert exit_status(work, "stopped; the same command goes on from here") == 143 and tidied == [True]
    assert capsys.readouterr().err == "stopped; the same command goes on from here\n" and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_during_the_imports_a_signal_ends_a_command_with_one_line(number):
    code = ("import signal; from vlmphys.signals import stop_quietly; signal.signal(signal.SIGINT, signal.default_int_handler); "
            f"stop_quietly('stopped; go on'); signal.raise_signal({int(number)})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + number, "stopped; go on\n")


def test_a_command_ends_with_one_sentence_and_its_documented_status(capsys):
    def failing(error: BaseException):
        def work() -> None:
            raise error
        return work
    assert [exit_status(lambda: None), exit_status(lambda: 3)] == [0, 3] and capsys.readouterr().err == ""
    for error, status, said in ((ValueError("--out x: give a folder"), 2, "error: --out x: give a folder\n"),
                                (Stopped("4 replies are kept", signal.SIGTERM), 143, "4 replies are kept\n"), (KeyboardInterrupt(), 130, "stopped\n")):
        assert exit_status(failing(error)) == status and capsys.readouterr().err == said
    with pytest.raises(ZeroDivisionError):     # a fault of the program keeps its traceback
        exit_status(lambda: 1 // 0)
