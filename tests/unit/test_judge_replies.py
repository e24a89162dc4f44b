"""Replies of a judge are read strictly: a grade from 0 to 1 or a reason, and never 0 for what could not be read."""

from __future__ import annotations

import re

import pytest

from vlmphys import judge_replies
from vlmphys.judge_replies import read_number, read_reply

pytestmark = pytest.mark.unit

NUMBERS = {
    "0.35": 0.35, ".35": 0.35, "1": 1.0, "0": 0.0, "1.0": 1.0, "1.": 1.0, " 0.5\n": 0.5, "0.35.": 0.35, "**0.35**": 0.35, "`0.7`": 0.7,
    "Similarity: 0.35": 0.35, "Score = 0.4": 0.4, "similarity score: 0.4": 0.4,
    "0.85 (out of 1.0)": 0.85, "0.85 out of 1": 0.85, "0.9/1.0": 0.9, "0.9 / 1": 0.9, "8/10": 0.8, "8 out of 10": 0.8, "85/100": 0.85,
    "85%": 0.85, "85 %": 0.85, "100%": 1.0, "+0.5": 0.5}
ERRORS = {
    "10": "outside 0 to 1", "85": "outside 0 to 1", "1.5": "outside 0 to 1", "-0.1": "outside 0 to 1", "101%": "outside 0 to 100",
    "11/10": "outside 0 to 10", "3/5": "a scale of 5", "1/0": "a scale of 0", "0.3 or 0.4": "no single number", "0.3-0.4": "no single number",
    "The similarity is about 0.4": "no single number", "high": "no single number", "0,35": "no single number", "nan": "no single number",
    "1e-1": "no single number", "": "empty reply", " \n": "empty reply", "**": "empty reply", "0.9/10.0.1": "no single number"}


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_in_an_accepted_form(text):
    assert read_number(text).grades == {"similarity": pytest.approx(NUMBERS[text])} and read_reply("similarity", text).problem is None


@pytest.mark.parametrize("text", ERRORS)
def test_what_is_no_grade_is_an_error_and_says_why(text):
    reading = read_reply("similarity", text)
    assert reading.grades is None and reading.problem.startswith(ERRORS[text])


def test_every_reply_of_the_modules_table_is_read_as_it_says():
    rows = [line.split("|")[1:3] for line in judge_replies.__doc__.splitlines() if line.startswith("| `")]
    assert len(rows) == 6
    for replies, meaning in rows:
        values = [float(value) for value in re.findall(r"\d\.\d+", meaning.partition(":")[0])]
        for number, reply in enumerate(re.findall(r"`([^`]*)`", replies)):
            reading = read_number(reply)
            if "an error" in meaning:
                assert reading.grades is None, reply
            elif "itself" not in meaning:
                assert reading.grades == {"similarity": pytest.approx(values[min(number, len(values) - 1)])}, reply


@pytest.mark.parametrize("text", ['{"type": 0.8, "reasoning": 0.5}', '```json\n{"type": 0.8, "reasoning": 0.5}\n```',
                                  '<think>0.1 or {"type": 1}?</think>\n{"type": 0.8, "reasoning": 0.5}', ' {"reasoning":5e-1,"type":0.8,"note":"x"}'])
def test_grades_are_one_json_object(text):
    assert read_reply("llm", text).grades == {"type": 0.8, "reasoning": 0.5}


@pytest.mark.parametrize("text,problem", [
    ("1", "no JSON object"), ("0.85 (out of 1.0)", "no JSON object"), ("85%", "no JSON object"), ("10", "no JSON object"), ("", "empty reply"),
    ("the type is right", "no JSON object"), ('Grades: {"type": 1, "reasoning": 1}', "no JSON object"), ('{"type": 1', "no JSON object"),
    ('[{"type": 1, "reasoning": 1}]', "no JSON object"), ('{"type": 1}', "'reasoning' is missing"),
    ('{"type": "1", "reasoning": 1}', "'type' is no number"),
    ('{"type": true, "reasoning": 1}', "'type' is no number"), ('{"type": null, "reasoning": 1}', "'type' is no number"),
    ('{"type": 10, "reasoning": 1}', "'type' is outside"), ('{"type": -0.1, "reasoning": 1}', "'type' is outside"),
    ('{"type": NaN, "reasoning": 1}', "no JSON object"), ('{"type": 1, "type": 0, "reasoning": 1}', "no JSON object"),
    ('{"type": 1e999, "reasoning": 1}', "'type' is outside"), ("[" * 100000, "no JSON object"), ("<think>hm</think>", "empty reply")])
def test_grades_in_another_form_are_errors(text, problem):
    reading = read_reply("llm", text)
    assert reading.grades is None and reading.problem.startswith(problem), reading


def test_a_similarity_may_be_an_object_too():
    assert read_reply("similarity", '{"similarity": 0.25}').grades == {"similarity": 0.25}
    assert read_reply("similarity", '{"similarity": 25}').problem.startswith("'similarity' is outside 0 to 1")
