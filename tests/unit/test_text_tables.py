"""A table in each of its forms: equal cells, signs escaped."""

from __future__ import annotations

import re

import pytest

from vlmphys.text_tables import TextTable, latex_text

pytestmark = pytest.mark.unit
TABLE = TextTable("A title", ["category", "a|b & <c>"], [["rubber_band", "50 %"], ["<b>x</b>", "–"], ["mean", "1"]],
                  ["a note with <i>"], frozenset({2}))


def test_markdown_keeps_its_columns():
    lines = [line for line in TABLE.markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 5 and {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3} and "- a note with &lt;i>" in TABLE.markdown()
    broken = TextTable("A\ntitle", ["category", "p"], [["a\nb <script>", "< 0.001"]], ["first\nsecond"])
    assert broken.markdown().splitlines()[0] == "## A title" and "| a b &lt;script> | < 0.001 |" in broken.markdown()
    assert "- first second\n" in broken.markdown() and "a b \\textless{}script" in broken.latex()


def test_latex_is_a_plain_tabular_with_its_signs_escaped():
    text = TABLE.latex()
    body = text.splitlines()
    assert body[0] == "% A title" and body[1] == "% a note with <i>" and r"\begin{tabular}{lr}" in text and text.endswith("\\end{tabular}\n")
    assert r"category & a\textbar{}b \& \textless{}c\textgreater{} \\" in text and r"rubber\_band & 50 \% \\" in text
    assert text.count(r"\hline") == 4 and "rule" not in text, "no line needs booktabs"
    assert latex_text("\\{}~^$#") == r"\textbackslash{}\{\}\textasciitilde{}\textasciicircum{}\$\#"


def test_html_escapes_every_text():
    html = TABLE.html()
    assert "<b>x" not in html and "<i>" not in html and "<c>" not in html and "&lt;b&gt;x" in html and html.count("<tr class=mean>") == 1
