"""The report in a real browser: no console error, no request, filters that work, texts that do nothing."""

from __future__ import annotations

import pytest
from chromium import Browser, chromium_path
from report_pages import frames_of, scored_runs

from vlmphys.report import write_html

pytestmark = [pytest.mark.integration, pytest.mark.skipif(chromium_path() is None, reason="no chromium (apt-get install chromium)")]


def test_the_report_opens_quietly_and_its_filters_work(tmp_path):
    runs, predictions = scored_runs(tmp_path)
    findings = {"one": {row: {"nearest": "stuck<i>"} for row in range(len(predictions["one"]))}}
    page = tmp_path / "report.html"
    page.write_text(write_html(runs, predictions, frames_of(predictions["one"]), findings=findings), encoding="utf-8")
    visible = "[...document.querySelectorAll('.card')].filter(card => card.offsetParent !== null)"
    with Browser() as browser:
        browser.run("1 + 1")
        browser.open(page)
        assert browser.run("document.title") == "vlmphys report"
        cards = browser.run(f"{visible}.length")
        assert cards > 8 and browser.run("document.getElementById('shown').textContent") == f"{cards} of {cards} clips shown"
        for name in ("category", "kind", "role"):
            for value in browser.run(f"[...document.getElementById('{name}').options].map(option => option.value)")[1:]:
                browser.choose(name, value)
                shown = browser.run(f"{visible}.map(card => card.dataset.{name} || card.dataset.{name}s)")
                assert all(value == mark if name == "category" else value in mark.split() for mark in shown), (name, value)
                marked = browser.run("document.querySelectorAll('.card').length - document.querySelectorAll('.card[hidden]').length")
                assert len(shown) == marked < cards
            browser.choose(name, "")
        browser.choose("kind", "wrong-cause")
        browser.choose("category", "fan")
        assert 0 < browser.run(f"{visible}.length") < browser.run("document.querySelectorAll('[data-kinds~=wrong-cause]').length")
        assert browser.run("document.querySelectorAll('script').length") == 1 and browser.run("document.querySelectorAll('.said img').length") == 0
        assert browser.errors == [] and browser.requests == []
