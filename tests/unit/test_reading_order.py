"""The docstring of the package leads a stranger to every module."""

from __future__ import annotations

import pkgutil
import re

import pytest

import vlmphys

pytestmark = pytest.mark.unit


def test_every_module_stands_in_the_reading_order_and_nothing_else():
    named = {word for words in re.findall(r"`([\w.]+)`", vlmphys.__doc__) for word in [words.partition(".")[0]]}
    assert named - {"launch"} == {module.name for module in pkgutil.iter_modules(vlmphys.__path__)}
