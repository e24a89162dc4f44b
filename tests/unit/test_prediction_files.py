"""One predictions file by several processes: parts, merged by clip id, whoever dies and whoever comes back."""

from __future__ import annotations

import fcntl
import json
import resource
from contextlib import ExitStack
from dataclasses import asdict, replace

import pytest

from vlmphys.prediction_files import RowRules, SharedFile, share
from vlmphys.predictions import Explain, Identity, Prediction, probability_of, verdict_of

pytestmark = pytest.mark.unit

IDENTITY = Identity(model="tiny@1", variant="multi_turn", grounding="prior", data_fingerprint="f" * 8)
RULES = RowRules(IDENTITY, Explain.NONE)
CLIPS = [f"fan/test/stuck/{number:02d}" for number in range(11)]


def prediction(clip_id: str, score: float = 1.5) -> Prediction:
    return Prediction(clip_id=clip_id, category="fan", state="stuck", label=1, score=score, probability=probability_of(score),
                      verdict=verdict_of(score).value, explanation=None, answers=["a"], **asdict(IDENTITY))


def clips_in(path) -> list[str]:
    return [json.loads(line)["clip_id"] for line in path.read_text().splitlines()]


def fill(file: SharedFile, clip_ids) -> None:
    for clip_id in clip_ids:
        if clip_id not in file.done:
            file.append(prediction(clip_id))


@pytest.mark.parametrize("ranks", [1, 2, 3, 11, 20])
def test_every_clip_is_of_one_rank(ranks):
    shares = [share(CLIPS[::-1], rank, ranks) for rank in range(ranks)]
    assert sorted(clip_id for own in shares for clip_id in own) == CLIPS and max(map(len, shares)) - min(map(len, shares)) <= 1


def test_ranks_write_parts_and_the_last_one_merges_them(tmp_path):
    path = tmp_path / "new" / "p.jsonl"
    with ExitStack() as stack:
        files = [stack.enter_context(SharedFile(path, RULES, rank, 2)) for rank in range(2)]
        for rank, file in enumerate(files):
            fill(file, share(CLIPS, rank, 2))
        assert not path.exists() and clips_in(path.with_name("p.jsonl.rank1")) == CLIPS[1::2], "rows are on disk at once"
    assert clips_in(path) == CLIPS and [one.name for one in path.parent.iterdir()] == ["p.jsonl"]
    assert [file.rows for file in files] == [len(CLIPS), None], "contexts end in reverse, so that the first rank is the last to end"


@pytest.mark.parametrize("later", [1, 2, 3])
def test_what_a_killed_launch_left_is_not_asked_again_by_any_number_of_ranks(tmp_path, later):
    path = tmp_path / "p.jsonl"
    path.write_bytes(RULES.line(prediction(CLIPS[9], score=0.5)) + b'{"half')
    for rank, clip_ids in ((0, CLIPS[:3]), (1, CLIPS[4:6])):
        path.with_name(f"p.jsonl.rank{rank}").write_bytes(b"".join(RULES.line(prediction(clip_id, 0.5)) for clip_id in clip_ids) + b'{"half')
    (tmp_path / ".p.jsonl.lock").write_text("2")        # no process holds it any more
    with ExitStack() as stack:
        files = [stack.enter_context(SharedFile(path, RULES, rank, later)) for rank in range(later)]
        for rank, file in enumerate(files):
            assert {CLIPS[9], *CLIPS[:3], *CLIPS[4:6]} <= file.done
            fill(file, share(CLIPS, rank, later))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["clip_id"] for row in rows) == CLIPS and [path.name] == [one.name for one in tmp_path.iterdir()]
    assert sum(row["score"] == 0.5 for row in rows) == 6, "rows that stood there are kept"


def test_a_rank_that_died_is_made_up_for_by_the_next_launch(tmp_path):
    path = tmp_path / "p.jsonl"
    with SharedFile(path, RULES, 0, 2) as first:
        fill(first, share(CLIPS, 0, 2))
    assert first.rows == 6 and clips_in(path) == CLIPS[::2]
    with SharedFile(path, RULES, 1, 2) as second:
        fill(second, share(CLIPS, 1, 2))
    assert second.rows == 11 and clips_in(path) == CLIPS


def test_rows_that_were_merged_before_their_part_could_be_removed_stand_once(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"".join(RULES.line(prediction(clip_id)) for clip_id in CLIPS))
    path.with_name("p.jsonl.rank0").write_bytes(RULES.line(prediction(CLIPS[2], score=9.0)))
    with SharedFile(path, RULES) as file:
        assert file.done == set(CLIPS)
    assert clips_in(path) == CLIPS and "9.0" not in path.read_text() and file.rows == 11


def test_a_launch_of_another_size_waits_for_its_turn(tmp_path):
    path = tmp_path / "p.jsonl"
    with SharedFile(path, RULES, 0, 2) as file:
        for rank, ranks in ((0, 1), (2, 3)):
            with pytest.raises(ValueError, match=r"is being written by another process \(one of 2\)"):
                SharedFile(path, RULES, rank, ranks).__enter__()
        fill(file, CLIPS[:1])
        with pytest.raises(ValueError, match="rank0 is being written by another process"):
            SharedFile(path, RULES, 0, 2).__enter__()
    with SharedFile(path, RULES), pytest.raises(ValueError, match=r"another process \(one of 1\)"):
        SharedFile(path, RULES).__enter__()
    assert clips_in(path) == CLIPS[:1] and [path.name] == [one.name for one in tmp_path.iterdir()]


def test_parts_of_another_model_are_refused_and_left_alone(tmp_path):
    path, part = tmp_path / "p.jsonl", tmp_path / "p.jsonl.rank1"
    part.write_bytes(RULES.line(prediction(CLIPS[0])))
    before = part.read_bytes()
    with pytest.raises(ValueError, match="p.jsonl.rank1:1 was predicted with model 'tiny@1', this run has 'other'"):
        SharedFile(path, replace(RULES, identity=replace(IDENTITY, model="other"))).__enter__()
    assert part.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == [part.name]


def test_nothing_is_left_where_nothing_was_written(tmp_path):
    with SharedFile(tmp_path / "deep" / "p.jsonl", RULES) as file:
        assert file.done == set()
    assert not (tmp_path / "deep").exists() and file.rows == 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_keeps_the_whole_rows_and_no_lock(tmp_path, ranks):
    path = tmp_path / "p.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))        # no file may be longer: the next write fails, as on a full disk
    try:
        with pytest.raises(OSError, match="too large"), SharedFile(path, RULES, 0, ranks) as file:
            fill(file, share(CLIPS, 0, ranks))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob(".*"))
    with SharedFile(path, RULES) as file:
        assert 0 < len(file.done) < len(share(CLIPS, 0, ranks))
        fill(file, CLIPS)
    assert sorted(clips_in(path)) == CLIPS


def test_a_lock_that_was_taken_away_while_one_waited_for_it_is_made_anew(tmp_path, monkeypatch):
    path, place = tmp_path / "p.jsonl", tmp_path / ".p.jsonl.lock"
    real, calls = fcntl.flock, []

    def flock(stream, kind):
        if not calls:
            place.unlink()      # what the last one of a launch does, between another one's open and lock
        calls.append(kind)
        return real(stream, kind)
    monkeypatch.setattr("vlmphys.prediction_files.fcntl.flock", flock)
    with SharedFile(path, RULES) as file:
        assert place.read_text() == "1"
        fill(file, CLIPS[:2])
    assert clips_in(path) == CLIPS[:2] and not place.exists()


def test_rows_with_and_without_descriptions_are_not_mixed(tmp_path):
    path, described = tmp_path / "p.jsonl", replace(RULES, describe=True)
    with SharedFile(path, described) as file:
        file.append(replace(prediction(CLIPS[0]), description="It turns."))
    assert json.loads(path.read_text())["description"] == "It turns."
    with pytest.raises(ValueError, match="was predicted with --describe: do the same as before"):
        SharedFile(path, RULES).__enter__()
