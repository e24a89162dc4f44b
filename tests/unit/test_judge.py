"""The judge against a real HTTP server of the chat protocol: errors are errors, nothing answered is asked twice, the key stays secret."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from chat_server import ChatStub

from vlmphys.chat_asking import FAILED_IN_A_ROW
from vlmphys.chat_client import ServerSettings
from vlmphys.chat_journal import Journal
from vlmphys.judge import EMPTY_TEXT, Question
from vlmphys.judge_options import add_judge_arguments, budget_of, open_judge

pytestmark = pytest.mark.unit

KEY = "sk-secret-4711"
GOOD = '{"type": 0.8, "reasoning": 0.4}'


def question(text: str, kind: str = "llm") -> Question:
    return Question(kind, "fan", "stuck", ("The shaft is stuck.", "The hub is blocked."), text)


def grade(out, url: str, texts, *flags: str, kind: str = "llm", said: list[str] | None = None, tries: int = 3):
    """Readings and record of one run of the judge, with short pauses."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    add_judge_arguments(parser)
    arguments = parser.parse_args(["--judge", "openai", "--judge-url", url, "--judge-model", "grader", "--judge-tries", str(tries), *flags])
    arguments.out = out
    with open_judge(arguments, (said if said is not None else []).append) as judge:
        if judge.asker is not None:
            object.__setattr__(judge.asker.settings, "backoff_seconds", 0.01)
        return judge.grade([question(text, kind) for text in texts])


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_grades_come_back_in_order_and_equal_texts_are_asked_once(tmp_path):
    said: list[str] = []
    with ChatStub(lambda text, _: json.dumps({"type": float(text), "reasoning": 0})) as server:
        readings, record = grade(tmp_path, server.url, ["0.1", "0.9", "0.1", "", "0.5"], said=said)
    assert [reading.grades["type"] for reading in readings] == [0.1, 0.9, 0.1, 0.0, 0.5]
    assert server.asked == {"0.1": 1, "0.9": 1, "0.5": 1}, "an empty text says nothing: it is 0 without asking"
    assert server.headers["path"] == "/v1/chat/completions" and server.headers["Authorization"] == f"Bearer {KEY}"
    body = server.bodies[0]
    assert body["temperature"] == 0 and body["model"] == "grader" and body["max_tokens"] == 256 and "response_format" not in body
    assert record["reply_models"] == ["grader-2026-01-01"] and record["n_questions"] == 3 and record["n_failed"] == 0
    assert record["requests"] == 3 and record["prompt_tokens"] == 150 and record["reply_tokens"] == 21
    assert "5 texts, 3 different questions, 0 answered before, 3 to ask: about" in said[0]
    rows = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and {row["reply_model"] for row in rows} == {"grader-2026-01-01"} and EMPTY_TEXT not in {row["key"] for row in rows}


def test_replies_that_are_no_grades_are_errors_and_counted_and_not_asked_again(tmp_path):
    replies = {"a": "I think it is right.", "b": "1", "c": "0.85 (out of 1.0)", "d": "85%", "e": "10", "f": "", "g": GOOD}
    with ChatStub(lambda text, _: replies[text]) as server:
        readings, record = grade(tmp_path, server.url, list(replies))
        assert [reading.grades for reading in readings[:-1]] == [None] * 6 and readings[-1].grades == {"type": 0.8, "reasoning": 0.4}
        assert record["n_failed"] == 6 and record["failures"] == {"no JSON object": 5, "empty reply": 1}
        _, again = grade(tmp_path, server.url, list(replies), "--judge-json")
        assert (again["requests"], again["n_from_file"], again["prompt_tokens"]) == (0, 7, record["prompt_tokens"])
        assert set(server.asked.values()) == {1}, "at temperature 0 the same would come back, at the same price"
        similar = grade(tmp_path, server.url, list(replies), "--judge-json", kind="similarity")[0]
        assert server.bodies[-1]["response_format"] == {"type": "json_object"}
    assert [reading.grades and reading.grades["similarity"] for reading in similar] == [None, 1.0, 0.85, 0.85, None, None, None]


@pytest.mark.parametrize("trouble,kind", [
    ((429, {"Retry-After": "0"}, "slow down"), "HTTP 429"), ((500, {}, "oops"), "HTTP 500"), ((503, {}, ""), "HTTP 503"), (1.0, "time-out"),
    ((200, {}, "<html>"), "no chat completion"), ((200, {}, '{"choices": []}'), "no chat completion"),
    ((200, {}, '{"choices": [{"message": {"content": "1"}}], "usage": {"prompt_tokens": Infinity}}'), "no chat completion"),
    ((200, {}, "[" * 100_000), "no chat completion"), ((400, {}, "too long"), "HTTP 400")])
def test_trouble_is_tried_again_where_that_helps_and_is_an_error_where_it_stays(tmp_path, trouble, kind):
    again = kind not in ("no chat completion", "HTTP 400")
    with ChatStub(lambda text, times: trouble if text == "always" or (text == "once" and times == 1) else GOOD) as server:
        flags = ("--judge-timeout", "0.3") if kind == "time-out" else ()
        readings, record = grade(tmp_path, server.url, ["always", "once", "never"], *flags)
        assert (readings[0].grades, readings[0].problem) == (None, kind)
        assert (readings[1].grades is not None) == again and readings[2].grades is not None
        assert server.asked == {"always": 3 if again else 1, "once": 2 if again else 1, "never": 1}
        assert record["failures"][kind] == (1 if again else 2)
        healed = grade(tmp_path, server.url, ["once", "never"], *flags)[0]
    assert all(reading.grades for reading in healed), "what has no reply is asked by the next run"
    assert server.asked["never"] == 1


def test_a_server_that_is_not_there_ends_the_run_with_a_message_and_keeps_the_replies(tmp_path):
    with ChatStub(lambda *_: GOOD) as server:
        grade(tmp_path, server.url, ["kept"])
        url = server.url
    with pytest.raises(ValueError, match=rf"no answers: {FAILED_IN_A_ROW} questions in a row failed \(last: no connection.*1 replies are kept"):
        grade(tmp_path, url, ["kept", *map(str, range(40))], tries=1)
    with ChatStub(lambda *_: (401, {}, f"bad key {KEY}")) as server:
        with pytest.raises(ValueError, match=r"answers 401: the key is refused: set OPENAI_API_KEY .*bad key \[key\]") as caught:
            grade(tmp_path, server.url, list("abcdefgh"), "--judge-concurrency", "1")
        assert KEY not in str(caught.value) and sum(server.asked.values()) == 1
    with ChatStub(lambda *_: (302, {"Location": "http://127.0.0.1:9/v1"}, "")) as server:
        assert grade(tmp_path, server.url, ["moved"])[0][0].problem == "HTTP 302", "the key follows no redirect"


def test_the_budget_is_asked_before_anything_is_sent_and_holds_with_further_tries(tmp_path):
    said: list[str] = []
    with ChatStub(lambda *_: (500, {}, "")) as server:
        with pytest.raises(ValueError, match="needs about 3 requests, and --judge-budget leaves 2: nothing was asked"):
            grade(tmp_path, server.url, ["a", "b", "c"], "--judge-budget", "2", said=said)
        with pytest.raises(ValueError, match=r"needs about \d+ tokens, and --judge-budget leaves 100"):
            grade(tmp_path, server.url, ["a"], "--judge-budget", "10,100")
        assert not server.asked and "3 to ask: about" in said[0]
        readings, record = grade(tmp_path, server.url, ["a", "b"], "--judge-budget", "4", "--judge-concurrency", "1", tries=3)
    assert sum(server.asked.values()) == record["requests"] == 4
    assert [reading.problem for reading in readings] == ["HTTP 500", "not asked: the budget of 4 requests is spent"]
    with ChatStub(lambda *_: GOOD) as server:
        readings, _ = grade(tmp_path, server.url, [f"t{number}" for number in range(5)], "--judge-budget", "5,5000", "--judge-concurrency", "1")
        assert all(reading.grades for reading in readings)
        assert all(reading.grades for reading in grade(tmp_path, server.url, ["t0", "t1"], "--judge-budget", "0")[0]), "kept replies cost nothing"
    assert budget_of("5000,2_000_000") == (5000, 2000000) and budget_of("7") == (7, None)
    for wrong in ("", "-1", "1,2,3", "many", "1.5"):
        with pytest.raises(ValueError, match="REQUESTS,TOKENS is expected"):
            budget_of(wrong)


def test_the_rate_and_the_number_of_requests_at_a_time_hold(tmp_path):
    with ChatStub(lambda *_: GOOD) as server:
        grade(tmp_path, server.url, list("abcdef"), "--judge-rate", "1200")
        gaps = [after - before for before, after in zip(sorted(server.moments), sorted(server.moments)[1:])]
    assert len(gaps) == 5 and sum(gaps) > 5 * 0.05 * 0.8, "1200 a minute are 50 ms apart"
    running, most = [0], [0]

    def slow(*_):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        running[0] -= 1
        return GOOD
    with ChatStub(slow) as server:
        grade(tmp_path / "two", server.url, list("abcdefgh"), "--judge-concurrency", "3")
    assert most[0] == 3


def test_a_long_run_says_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("vlmphys.chat_asking.PROGRESS_SECONDS", 0.1)
    said: list[str] = []

    def slow(*_):
        time.sleep(0.1)
        return GOOD
    with ChatStub(slow) as server:
        grade(tmp_path, server.url, list("abcdef"), "--judge-concurrency", "1", said=said)
    assert said[1:] and all(re.fullmatch(r"judge: [1-6] of 6 asked, 0 without an answer", line) for line in said[1:])


def test_replay_asks_nobody_and_says_what_it_does_not_have(tmp_path):
    with ChatStub(lambda *_: GOOD) as server:
        first, _ = grade(tmp_path, server.url, ["a", "b"])
    readings, record = grade(tmp_path, "", ["b", "a", "new"], "--judge", "replay", "--judge-model", "grader")
    assert readings[:2] == first and (readings[2].grades, readings[2].problem) == (None, "not in the file of replies")
    assert record["provider"] == "replay" and record["requests"] == 0 and record["failures"] == {"not in the file of replies": 1}
    with pytest.raises(ValueError, match="no such file of replies"):
        grade(tmp_path / "elsewhere", "", ["a"], "--judge", "replay")


def test_a_cut_off_reply_is_asked_again_where_it_may_be_longer(tmp_path):
    def cut(text, times):
        content = {"choices": [{"message": {"content": '{"type": 0.' if times == 1 else GOOD}, "finish_reason": "length" if times == 1 else "stop"}]}
        return (200, {}, json.dumps(content))
    with ChatStub(cut) as server:
        assert grade(tmp_path, server.url, ["a"])[0][0].problem.startswith("cut off by --judge-max-tokens")
        grade(tmp_path, server.url, ["a"])
        assert server.asked["a"] == 1
        assert grade(tmp_path, server.url, ["a"], "--judge-max-tokens", "512")[0][0].grades
        assert grade(tmp_path, server.url, ["a"])[0][0].grades and server.asked["a"] == 2


def test_the_key_is_written_nowhere(tmp_path, capsys):
    said: list[str] = []
    with ChatStub(lambda text, _: (500, {}, f"Authorization: Bearer {KEY}") if text == "bad" else f"{KEY} {GOOD}") as server:
        readings, record = grade(tmp_path, server.url, ["bad", "echo"], said=said)
        everything = repr(readings) + repr(record) + repr(said) + (tmp_path / "judge.jsonl").read_text() + "".join(capsys.readouterr())
        assert KEY not in everything and "[key]" in everything
    assert KEY not in repr(ServerSettings("http://localhost/v1", "m", KEY))


@pytest.mark.parametrize("flags,message", [
    (("--judge-url", "localhost:8000"), "an address such as"), (("--judge-url", "http://me:pass@host/v1"), "holds a user, a password"),
    (("--judge-url", "https://host/v1?key=abc"), "holds a user, a password"), (("--judge-model", ""), "give --judge-model, or set OPENAI_MODEL"),
    (("--judge-url", ""), "give --judge-url, or set OPENAI_BASE_URL"), (("--judge-key-env", "NO_SUCH_KEY"), "no such variable in the environment"),
    (("--judge", "openia"), "allowed are none, openai, local:DIR and replay"), (("--judge", "local:"), "allowed are none, openai"),
    (("--judge", "local:/nowhere"), "config.json is missing"), (("--judge-tries", "0"), "must be above 0"),
    (("--judge-url", "http://localhost:abc/v1"), "a port from 1 to 65535"), (("--judge-url", "http://localhost:99999/v1"), "a port from 1 to 65535"),
    (("--judge-url", "http://[::1/v1"), "an address such as"), (("--judge-url", "http://localhost/v 1"), "no space"),
    (("--judge-url", "me:pass@host"), "an address such as"), (("--judge-timeout", "nan"), "must be above 0"),
    (("--judge-concurrency", "0"), "at least 1 is needed"), (("--judge-rate", "-1"), "must be above 0"), (("--judge-rate", "0"), "must be above 0")])
def test_flags_that_cannot_work_are_refused_before_a_file_is_made(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message) as caught:
        grade(tmp_path / "new", "http://127.0.0.1:9/v1", ["a"], *flags)
    assert not (tmp_path / "new").exists() and "pass@" not in str(caught.value) and "abc" not in str(caught.value)


def test_a_line_cut_by_a_kill_is_dropped_and_other_files_are_refused(tmp_path):
    with ChatStub(lambda *_: GOOD) as server:
        grade(tmp_path, server.url, ["a", "b"], "--judge-concurrency", "1")
        path = tmp_path / "judge.jsonl"
        path.write_bytes(path.read_bytes()[:-9])
        readings, _ = grade(tmp_path, server.url, ["a", "b"])
        assert all(reading.grades for reading in readings) and server.asked == {"a": 1, "b": 2}
        assert all(json.loads(line) for line in path.read_text().splitlines())
    with Journal(path), pytest.raises(ValueError, match="being written by another process"):
        Journal(path)
    for line in ('{"clip_id": "fan/1"}', "[" * 100_000, '{"key": "k", "model": "m", "kind": "llm", "text": "t", "prompt_tokens": "7"}'):
        path.write_text(line + "\n")
        with pytest.raises(ValueError, match=r"judge.jsonl:1 is no kept reply"):
            Journal(path)
    Journal(tmp_path / "again.jsonl").close()


ASK = """
import argparse, sys
from pathlib import Path
from vlmphys.judge import Question
from vlmphys.judge_options import add_judge_arguments, open_judge
from vlmphys.signals import Stopped
parser = argparse.ArgumentParser()
add_judge_arguments(parser)
arguments = parser.parse_args(["--judge", "openai", "--judge-url", sys.argv[1], "--judge-model", "grader", "--judge-concurrency", sys.argv[3]])
arguments.out = Path(sys.argv[2])
with open_judge(arguments, print) as judge:
    try:
        readings, record = judge.grade([Question("llm", "fan", "stuck", ("The hub is blocked.",), f"text {n}") for n in range(60)])
    except Stopped as stopped:
        sys.exit(128 + stopped.number)
assert all(reading.grades for reading in readings) and len(readings) == 60
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_in_the_middle_and_started_again_nothing_is_lost_or_asked_twice(tmp_path, repository, number):
    at_a_time = 3
    environment = {**os.environ, "PYTHONPATH": str(repository)}

    def answer(*_):
        time.sleep(0.02)
        return GOOD
    with ChatStub(answer) as server:
        command = [sys.executable, "-c", ASK, server.url, str(tmp_path), str(at_a_time)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while sum(server.asked.values()) < 20 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(number)
        assert process.wait(30) == (-9 if number == signal.SIGKILL else 128 + number)
        kept = len((tmp_path / "judge.jsonl").read_bytes().split(b"\n")) - 1
        assert 0 < kept < 60, "it was killed in the middle"
        assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, timeout=60).returncode == 0
    assert len(server.asked) == 60
    twice = sum(server.asked.values()) - 60
    assert twice <= at_a_time if number == signal.SIGKILL else twice == 0, "only what was in flight when it was killed"
    assert len({json.loads(line)["key"] for line in (tmp_path / "judge.jsonl").read_text().splitlines()}) == 60


def test_a_connection_that_is_closed_without_an_answer_is_tried_again(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.listen()

        taken = []

        def close_at_once():
            for _ in range(3):
                connection, _ = listener.accept()
                taken.append(connection.recv(10))
                connection.close()
        threading.Thread(target=close_at_once, daemon=True).start()
        readings, _ = grade(tmp_path, url, ["a"])
    assert readings[0].problem == "no connection" and len(taken) == 3
