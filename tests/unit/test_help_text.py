"""--help says the defaults there are, and never that one is None."""

from __future__ import annotations

import argparse
import sys

import pytest
from launching import load_script

from vlmphys.help_text import DefaultsFormatter

pytestmark = pytest.mark.unit


def test_a_default_is_said_once_and_only_where_there_is_one():
    parser = argparse.ArgumentParser(formatter_class=DefaultsFormatter)
    parser.add_argument("--frames", type=int, default=8, help="how many")
    parser.add_argument("--zero", type=int, default=0, help="a number")
    parser.add_argument("--workers", type=int, help="how many processes (default: one a core)")
    parser.add_argument("--strict", action="store_true", help="end with 3")
    parser.add_argument("--roi", action="append", default=[], help="a part")
    said = parser.format_help()
    assert "how many (default: 8)" in said and "a number (default: 0)" in said and said.count("(default") == 3
    assert "None" not in said and "False" not in said and "[]" not in said


@pytest.mark.parametrize("script", ["annotate", "export", "pack", "priors", "simulate", "split", "verify"])
def test_no_command_says_none(repository, script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        load_script(repository / f"data_prep/{script}.py").main()
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "usage:" in said and "default: None" not in said and "default: False" not in said and "None:" not in said
