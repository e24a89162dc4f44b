"""data_prep/annotate.py as a command, on a real socket: killed at any time it goes on where it was, and what it writes can be packed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_server import ChatStub
from clip_files import make_videos
from draft_server import OUTLINE, asked_list, drafts, reply

pytestmark = pytest.mark.integration
AT_A_TIME = 2


def command(repository: Path, *words: object, status: int = 0) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=repository, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def asked_turn(body: dict) -> str:
    """The list, and which of its turns this is."""
    return f"{asked_list(body)}#{len(body['messages']) // 2}"


def by_turn(told: str, _times: int) -> str:
    """In each list's first reply two of five drafts have the other verdict; the second one mends that. Each question has one reply."""
    time.sleep(0.15)
    place, turn = told.split("#")
    if turn == "2":
        return reply(*drafts(place, [5, 6, 7]))
    other = "Anomalous" if place.startswith("anomaly_free") else "Normal"
    return reply(*drafts(place, [0, 1], verdict=other), *drafts(place, [2, 3, 4]))


def test_killed_and_resumed_the_file_is_the_same_and_can_be_packed(repository, tmp_path):
    (tmp_path / "latch.yaml").write_text(OUTLINE)
    videos = make_videos(tmp_path / "videos", {"latch": ("slow", "stuck")}, clips=4)
    with ChatStub(by_turn, asked_turn) as server:
        words = ("data_prep/annotate.py", "--prior", tmp_path / "latch.yaml", "--videos", videos, "--api-base", server.url, "--model", "writer",
                 "--concurrency", AT_A_TIME)
        said = command(repository, *words, "--out", tmp_path / "alone")
        assert "30 drafts taken, 12 refused (wrong verdict 12); 12 requests" in said
        assert len(server.asked) == 12 and set(server.asked.values()) == {1}
        server.asked.clear()
        out, journal = tmp_path / "priors", tmp_path / "priors/latch.drafts.jsonl"
        kept = []
        for number, after in ((signal.SIGKILL, 3), (signal.SIGTERM, 9)):  # in the first round of six, in the second
            process = subprocess.Popen([sys.executable, *map(str, words), "--out", str(out)], cwd=repository, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            while sum(server.asked.values()) < after and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(number)
            assert process.wait(60) == (-9 if number == signal.SIGKILL else 128 + number)
            kept.append(len(journal.read_bytes().split(b"\n")) - 1)
            assert not (out / "latch.yaml").exists(), "a file is written when all is drafted"
        assert 0 < kept[0] < kept[1] < 12
        command(repository, *words, "--out", out)
        assert len(server.asked) == 12 and sum(server.asked.values()) - 12 <= AT_A_TIME, "only what was in flight at SIGKILL is asked again"
        assert (out / "latch.yaml").read_bytes() == (tmp_path / "alone/latch.yaml").read_bytes()
        assert len({json.loads(line)["key"] for line in journal.read_text().splitlines()}) == 12
    assert "clean: 1 file, 3 states, 30 texts" in command(repository, "data_prep/verify.py", "--priors", out)
    split, packed = tmp_path / "split.json", tmp_path / "packed"
    command(repository, "data_prep/split.py", "--videos", videos, "--out", split, "--protocol", "weak", "--per-anomaly", 2)
    command(repository, "data_prep/pack.py", "--videos", videos, "--split", split, "--model", "tiny", "--out", packed, "--priors", out)
    assert "all is as it should be" in command(repository, "data_prep/verify.py", "--data", packed, "--priors", out)
