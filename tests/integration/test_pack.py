"""split.py, pack.py and verify.py on real files: through the commands, and, for crashes in the middle, through the functions they call."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import encode_clip, make_videos
from launching import load_script

from vlmphys import packing
from vlmphys.dialogue_packing import shuffled_states
from vlmphys.files import only_writer
from vlmphys.layout import scan_videos
from vlmphys.packing import FrameSettings, check_kept, pack_frames
from vlmphys.pixels import fit_frames
from vlmphys.records import sha256_file
from vlmphys.shards import FramesTable, open_packed
from vlmphys.splits import load_split, make_split, write_split
from vlmphys.verifying import verify
from vlmphys.video import read_frames

pytestmark = pytest.mark.integration

STATES = {"fan": ("stuck", "uneven"), "hinge": ("falloff",)}
VARIANTS = "multi_turn,single_turn,no_physics"


def command(repository: Path, script: str, *arguments: object, status: int = 0) -> str:
    """Run a command from the repository's root; its standard output, or its standard error where it should fail."""
    done = subprocess.run([sys.executable, f"data_prep/{script}.py", *map(str, arguments)], cwd=repository, capture_output=True, text=True,
                          env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if status == 2 else done.stdout


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """24 good clips and two bad ones."""
    root = make_videos(tmp_path_factory.mktemp("videos"), STATES, clips=3)
    (root / "fan/test/stuck/0009.mp4").write_bytes(b"no video at all")
    encode_clip(root / "fan/train/0009.mp4", 5, 48, 64)
    return root


@pytest.fixture(scope="module")
def packed(videos, repository, tiny_model_folder, tmp_path_factory) -> Path:
    """The videos, split and packed by the commands, with two workers."""
    folder = tmp_path_factory.mktemp("data")
    command(repository, "split", "--videos", videos, "--out", folder / "split.json", "--protocol", "weak", "--per-anomaly", 2)
    said = command(repository, "pack", "--videos", videos, "--split", folder / "split.json", "--model", tiny_model_folder,
                   "--out", folder / "packed", "--workers", 2)
    assert "frames: packed, 21 rows" in said and "2 clip(s) in quarantine" in said and "dialogues: packed, 63 rows" in said
    assert "  fan/anomaly_free: train " in said and "  fan/stuck: " in said
    return folder / "packed"


def test_what_was_packed(packed, videos, tiny_model_folder):
    data = open_packed(packed)
    clips = scan_videos(videos)
    assert data.split.sha256 == sha256_file(packed.parent / "split.json")
    assert len(data.frames.clip_ids) == 21 and len(data.dialogues.keys) == 63
    for clip in clips:
        if clip.path.name == "0009.mp4":
            continue
        row, decoded = data.frames.row(clip.clip_id), read_frames(clip.path)
        assert np.array_equal(row.frames_THWC, fit_frames(decoded.frames_THWC, 32))
        assert (row.category, row.state, row.label) == (clip.category, clip.state, clip.label)
        assert (row.source_sha256, row.source_fps, row.source_frames) == (sha256_file(clip.path), 60.0, 12)
        assert row.frame_index.tolist() == decoded.frame_index.tolist()
    bad = [json.loads(line) for line in (packed / "frames/quarantine.jsonl").read_text().splitlines()]
    assert [entry["clip_id"] for entry in bad] == ["fan/test/stuck/0009", "fan/train/0009"]
    assert "Invalid data" in bad[0]["reason"] and bad[1]["reason"] == "has 5 frame(s), 8 are wanted"
    assert not {entry["clip_id"] for entry in bad} & set(data.clip_ids("train") + data.clip_ids("val") + data.clip_ids("test"))
    assert sorted(path.name for path in packed.iterdir()) == ["dialogues", "frames", "split.json"]


@pytest.mark.parametrize("variant", VARIANTS.split(","))
def test_only_train_clips_are_asked_in_many_ways(packed_folder, variant):
    data = open_packed(packed_folder)
    for category in {row.category for row in map(data.frames.row, data.frames.clip_ids)}:
        asked: dict[str, set[tuple[int, ...]]] = {}
        for side in ("train", "val", "test"):
            rows = [data.dialogues.row(clip_id, variant) for clip_id in data.clip_ids(side) if data.frames.row(clip_id).category == category]
            asked[side] = {tuple(row.input_ids[:row.verdict_span[0]].tolist()) for row in rows}
        assert asked["val"] == asked["test"] and len(asked["test"]) == 1
        assert len(asked["train"]) > 1


def test_a_second_run_changes_nothing(packed, videos, repository, tiny_model_folder):
    before = times(packed)
    said = command(repository, "pack", "--videos", videos, "--split", packed.parent / "split.json", "--model", tiny_model_folder,
                   "--out", packed)
    assert "frames: already packed, 21 rows" in said and "dialogues: already packed" in said and "2 clip(s) in quarantine" in said
    assert times(packed) == before


def test_verify_finds_a_flipped_byte(packed, repository, tiny_model_folder, tmp_path):
    said = command(repository, "verify", "--data", packed, "--model", tiny_model_folder)
    assert "21 rows" in said and "63 rows" in said and "all is as it should be" in said
    assert "all is as it should be" in command(repository, "verify", "--data", packed, "--priors", "package")
    damaged = tmp_path / "packed"
    for name, content in tree(packed).items():
        (damaged / name).parent.mkdir(parents=True, exist_ok=True)
        (damaged / name).write_bytes(content)
    shard = damaged / "frames/frames-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    said = command(repository, "verify", "--data", damaged, status=1)
    assert "frames-00000.arrow: its bytes are not those that were written" in said and "1 problem(s) found" in said
    shard.unlink()
    assert "frames-00000.arrow: is missing" in command(repository, "verify", "--data", damaged, status=1)
    assert "no such folder" in command(repository, "verify", "--data", tmp_path / "nowhere", status=2)


def test_verify_sees_a_wrong_mask_and_another_prior(packed_folder, tmp_path, monkeypatch):
    from vlmphys import verifying
    from vlmphys.shards import DialogueRow, DialogueTable

    assert not [problem for check in verify(packed_folder) if check.name.startswith("dialogues") for problem in check.problems]
    table = DialogueTable.open(packed_folder / "dialogues")
    good = table.row(*table.keys[0])
    assert not verifying._dialogue_problems(good, table)
    turn = good.turn.copy()
    turn[turn == turn.max()] = 0
    assert len(verifying._dialogue_problems(DialogueRow(good.clip_id, good.variant, good.input_ids, turn, good.verdict_span), table)) == 2
    ids = good.input_ids.copy()
    ids[ids == table.meta["video_token_id"]] = 0
    unseen = DialogueRow(good.clip_id, good.variant, ids, good.turn, good.verdict_span)
    assert "0 video tokens" in verifying._dialogue_problems(unseen, table)[0]
    from vlmphys.priors import PRIORS_FOLDER
    text = (PRIORS_FOLDER / "fan.yaml").read_text().replace("component: ", "component: Here ", 1)
    (tmp_path / "fan.yaml").write_text(text)
    (priors,) = [check for check in verify(packed_folder, str(tmp_path)) if check.name.startswith("priors")]
    assert "priors_sha256" in priors.problems[0] and f"--priors {tmp_path} is not the folder that it was given" in priors.problems[0]


def test_verify_names_dialogues_of_an_earlier_version(packed_folder):
    """Their val and test clips were asked in several wordings: nothing but the missing key tells them apart."""
    from vlmphys import verifying

    old = open_packed(packed_folder)
    assert old.dialogues.meta.pop("wordings") == "train"
    (problem,) = verifying._check_dialogues(old).problems
    assert "'wordings' is missing" in problem and "pack again with data_prep/pack.py --only dialogues, which decodes nothing" in problem


def test_a_check_writes_nothing(videos, repository, tiny_model_folder, tmp_path):
    command(repository, "split", "--videos", videos, "--out", tmp_path / "split.json", "--protocol", "weak", "--per-anomaly", 2)
    words = ("pack", "--check", "--videos", videos, "--split", tmp_path / "split.json", "--model", tiny_model_folder, "--out", tmp_path / "packed")
    assert "23 clips: split, priors and dialogues fit; nothing was written" in command(repository, *words)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/fan.yaml").write_text("component: broken")
    assert "'dynamic' is missing" in command(repository, *words, "--priors", tmp_path / "mine", status=2)
    shipped = (repository / "vlmphys/priors/fan.yaml").read_text()
    (tmp_path / "mine/fan.yaml").write_text(re.sub("(?m)^motion: .*$", "motion: The blades turn as they should and the hub never vibrates.", shipped))
    done = subprocess.run([sys.executable, "data_prep/pack.py", *map(str, words[1:]), "--priors", str(tmp_path / "mine")], cwd=repository,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "priors and dialogues fit" in done.stdout
    assert done.stderr.startswith(f"warning: 2 problems in the priors spoil what is trained on them; python data_prep/verify.py --priors "
                                  f"{tmp_path / 'mine'} shows all, the first:\n  fan: motion names ")
    assert not (tmp_path / "packed").exists()


def test_verify_tells_hints_from_problems(packed_folder, repository, monkeypatch, capsys):
    from vlmphys import verifying
    module = load_script(repository / "data_prep/verify.py")
    monkeypatch.setattr("sys.argv", ["verify", "--data", str(packed_folder)])
    monkeypatch.setattr(verifying, "few_texts", lambda prior: [f"{prior.category}: few"])
    assert module.main() == 0, "a hint is no problem"
    said = capsys.readouterr().out
    assert "hint: fan: few" in said and "all is as it should be; 2 hint(s), which are no problems" in said
    monkeypatch.setattr(verifying, "lint", lambda prior: [f"{prior.category}: leak"])
    assert module.main() == 1
    assert "2 problem(s) found; 2 hint(s)" in capsys.readouterr().out


def test_other_dialogues_decode_nothing(packed, repository, tiny_model_folder, tmp_path):
    """Without --videos there is nothing that could be decoded; the frames stay as they are, to the byte."""
    frames = tree(packed / "frames")
    before = open_packed(packed)
    said = command(repository, "pack", "--only", "dialogues", "--model", tiny_model_folder, "--out", packed, "--shuffle-labels", 1,
                   "--system")
    assert "dialogues: packed, 63 rows" in said
    after = open_packed(packed)
    assert tree(packed / "frames") == frames
    assert after.dialogues.meta["controls"] == {"shuffle_labels": 1} and after.fingerprint != before.fingerprint
    key = before.dialogues.keys[0]
    assert len(after.dialogues.row(*key).input_ids) > len(before.dialogues.row(*key).input_ids)
    command(repository, "pack", "--only", "dialogues", "--model", tiny_model_folder, "--out", packed)
    assert open_packed(packed).fingerprint == before.fingerprint


def test_bad_input_is_one_sentence_and_writes_nothing(videos, repository, tiny_model_folder, tmp_path):
    out, split = tmp_path / "packed", tmp_path / "split.json"
    assert "no such folder" in command(repository, "split", "--videos", tmp_path / "vidoes", "--out", split, "--protocol", "weak", status=2)
    said = command(repository, "split", "--videos", videos, "--out", split, "--protocol", "weak", "--per-anomaly", 3, status=2)
    assert "hinge/falloff has 3 and would give 3" in said and not split.exists()

    odd = make_videos(tmp_path / "odd", {"fan": ("stuck",)}, clips=2)
    (odd / "fan/test/anomaly_free").rename(odd / "fan/test/good")
    said = command(repository, "split", "--videos", odd, "--out", tmp_path / "odd.json", "--protocol", "weak", "--per-anomaly", 1)
    assert "warning: fan has no normal test clip" in said and "rename it to fan/test/anomaly_free" in said

    strange = make_videos(tmp_path / "videos", {"fann": ("stuck",)}, clips=2)
    write_split(split, make_split(scan_videos(strange), "weak", per_anomaly=1))
    arguments = ["--videos", strange, "--split", split, "--out", out]
    said = command(repository, "pack", *arguments, "--model", tiny_model_folder, status=2)
    assert "'fann' (did you mean 'fan'?)" in said and "--priors DIR" in said
    said = command(repository, "pack", "--videos", videos, "--split", split, "--out", out, "--model", tiny_model_folder, status=2)
    assert "the split names 6 clips not in the videos folder, first 'fann/" in said

    broken = tmp_path / "broken"
    for name in ("fan/train/1.mp4", "fan/test/stuck/1.mp4", "fan/test/stuck/2.mp4"):
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_bytes(b"nothing")
    write_split(split, make_split(scan_videos(broken), "weak", per_anomaly=1))
    said = command(repository, "pack", "--videos", broken, "--split", split, "--out", out, "--model", tiny_model_folder, "--workers", 0,
                   status=2)
    assert "none of the 3 clips can be used" in said
    assert not out.exists()


def test_what_would_be_passed_over_or_fail_after_the_decoding_is_refused_before(packed, videos, repository, tiny_model_folder, tmp_path, monkeypatch,
                                                                              capsys):
    def refusal(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["pack.py", "--model", str(tiny_model_folder), *map(str, words)])
        assert pack.main() == 2
        return capsys.readouterr().err

    pack, out = load_script(repository / "data_prep/pack.py"), tmp_path / "packed"
    arguments = ["--videos", videos, "--split", packed / "split.json", "--out", out, "--workers", 0]
    assert "--out is empty" in refusal(*arguments, "--out", "")
    assert "--only frames does not make" in refusal(*arguments, "--only", "frames", "--statistics")
    if not torch.cuda.is_available():
        assert "this machine has no usable GPU" in refusal(*arguments, "--features", "--device", "cuda")
    assert not out.exists()
    out.mkdir()
    (out / "split.json").write_text("mine")
    assert "give another --out, or move it away" in refusal(*arguments) and [path.name for path in out.iterdir()] == ["split.json"]
    before = tree(packed)
    for words in (["--frames", 4], ["--frame-rule", "phase"], ["--fit", "stretch"], ["--roi", "0,0,0.5,1"]):
        assert f"{words[0]} belongs to the frames" in refusal("--only", "dialogues", "--out", packed, *words)
    assert tree(packed) == before


def test_wrong_lines_of_a_list_are_refused_by_split_and_check_and_a_broken_link_is_not(videos, repository, tiny_model_folder, tmp_path, monkeypatch, capsys):
    def run(script: str, *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, words)])
        status, said = load_script(repository / f"data_prep/{script}.py").main(), capsys.readouterr()
        return status, said.out, said.err

    listed, split, out = tmp_path / "clips.csv", tmp_path / "split.json", tmp_path / "packed"
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nowhere.mp4")
    good = [f"{clip.path},{clip.category},{clip.state}" for clip in scan_videos(videos) if clip.category == "fan"]
    listed.write_text("\n".join(["path,category,state", f"{tmp_path}/link.mp4,fan,stuck", *good, "cam1\\gone.mp4,fan,stuck"]) + "\n")
    words = ("--videos", listed, "--out", split, "--protocol", "weak", "--per-anomaly", 1)
    status, _, said = run("split", *words)
    last = len(good) + 3
    assert status == 2 and f"1 of {len(good) + 2} listed files is not there: line {last}: " in said and "forward slashes" in said and not split.exists()
    whole = listed.read_text()
    listed.write_text(whole.replace("cam1\\gone.mp4", "late.mp4"))
    (tmp_path / "late.mp4").write_bytes(good[0].encode())
    assert run("split", *words)[0] == 0
    (tmp_path / "late.mp4").unlink()
    words = ("--videos", listed, "--split", split, "--out", out, "--model", tiny_model_folder, "--workers", 0, "--variants", "no_physics")
    status, _, said = run("pack", *words, "--check")
    assert status == 2 and f"line {last}: {tmp_path}/late.mp4" in said and not out.exists()
    status, said, warned = run("pack", *words)
    assert status == 0 and "4 clip(s) in quarantine" in said and "  fan/stuck: " in said
    reasons = {Path(bad["path"]).name: bad["reason"] for bad in open_packed(out).quarantined()}
    assert reasons["link.mp4"] == reasons["late.mp4"] == "cannot be opened: No such file or directory"


def test_a_second_packer_is_refused(packed, videos, repository, tiny_model_folder):
    with only_writer(packed):
        said = command(repository, "pack", "--only", "dialogues", "--model", tiny_model_folder, "--out", packed, status=2)
    assert "another process is packing" in said


def die_in_the_middle(videos: Path, out: Path, clips_per_shard: int, dies_at: int) -> None:
    """A packing process that ends like one that is killed: at once, with nothing tidied up."""
    packing.CLIPS_PER_SHARD = clips_per_shard

    def progress(done: int, bad: int) -> None:
        if done == dies_at:
            journal, written = out / "frames.partial/progress.jsonl", 1 + dies_at // clips_per_shard
            while len(journal.read_text().splitlines()) < written:      # shards are finished beside the decoding
                time.sleep(0.01)
            os._exit(9)

    pack_frames(scan_videos(videos), out, FrameSettings(8, 32), 0, progress)


def test_resumed_after_crashes_it_is_the_same_to_the_byte(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "CLIPS_PER_SHARD", 4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    clips, settings = scan_videos(videos), FrameSettings(8, 32)
    assert pack_frames(clips, whole, settings, 0).shards == 6
    for dies_at in (7, 13):
        process = multiprocessing.get_context("spawn").Process(target=die_in_the_middle, args=(videos, broken, 4, dies_at))
        process.start()
        process.join()
        assert process.exitcode == 9 and not (broken / "frames").exists()
        with open(broken / "frames.partial/progress.jsonl", "a") as stream:
            stream.write('{"index": 5, "shard": {"fi')  # what a write that was cut off leaves
    started = []
    report = pack_frames(clips, broken, settings, 0, lambda done, bad: started.append(done))
    assert started[0] == 12 and report.rows == 21 and len(report.quarantine) == 2
    assert tree(broken) == tree(whole)
    assert pack_frames(clips, broken, settings, 0).skipped


def test_other_settings_and_other_files_are_packed_anew(tmp_path):
    root, out = make_videos(tmp_path / "videos", {"fan": ("stuck",)}, clips=2), tmp_path / "packed"
    out.mkdir()
    pack_frames(scan_videos(root), out, FrameSettings(8, 32), 0)
    first = FramesTable.open(out / "frames")
    assert not pack_frames(scan_videos(root), out, FrameSettings(8, 32, "hf", "stretch"), 0).skipped
    second = FramesTable.open(out / "frames")
    assert (second.meta["rule"], second.meta["fit"]) == ("hf", "stretch") and second.fingerprint != first.fingerprint
    encode_clip(root / "fan/train/0000.mp4", 20, 48, 64, seed=99)
    assert not pack_frames(scan_videos(root), out, FrameSettings(8, 32, "hf", "stretch"), 0).skipped
    assert FramesTable.open(out / "frames").row("fan/train/0000").source_frames == 20
    (tmp_path / "mine/frames").mkdir(parents=True)
    (tmp_path / "mine/frames/thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="was not written by data_prep/pack.py"):
        pack_frames(scan_videos(root), tmp_path / "mine", FrameSettings(8, 32), 0)
    assert (tmp_path / "mine/frames/thesis.txt").exists()
    for name, words in (("frames.partial/thesis.txt", "holds 'thesis.txt', which data_prep/pack.py did not write"),
                        ("frames/manifest.json", "was not written by data_prep/pack.py")):
        path = tmp_path / words[:5] / name
        path.parent.mkdir(parents=True)
        path.write_text('{"name": "a web page"}')
        with pytest.raises(ValueError, match=words):
            pack_frames(scan_videos(root), tmp_path / words[:5], FrameSettings(8, 32), 0)
        assert path.read_text() == '{"name": "a web page"}'


def test_other_settings_are_refused_where_they_would_discard_finished_clips(packed, videos, repository, tiny_model_folder):
    before = times(packed)
    arguments = ("--videos", videos, "--split", packed.parent / "split.json", "--model", tiny_model_folder, "--out", packed, "--frame-rule", "phase")
    for more in ((), ("--check",)):
        said = command(repository, "pack", *arguments, *more, status=2)
        assert "settings differ (rule official -> phase), and 21 finished clip(s) would be discarded" in said and "--restart" in said
    assert "nothing was written" in command(repository, "pack", *arguments, "--check", "--restart")
    assert times(packed) == before


def test_other_settings_are_refused_over_an_unfinished_pack_too(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "CLIPS_PER_SHARD", 4)
    clips = scan_videos(videos)

    def progress(done: int, bad: int) -> None:
        if done == 10:
            deadline = time.monotonic() + 30
            while (tmp_path / "frames.partial/progress.jsonl").read_text().count("\n") < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_frames(clips, tmp_path, FrameSettings(8, 32), 0, progress)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"settings differ \(fit crop -> stretch, rule official -> hf\), and \d finished"):
        check_kept(clips, tmp_path, FrameSettings(8, 32, "hf", "stretch"))
    check_kept(clips, tmp_path, FrameSettings(8, 32))
    assert tree(tmp_path) == before


def test_shuffled_labels_permute_the_train_clips_of_each_category(packed):
    data = open_packed(packed)
    states, split = data.frames.states(), load_split(packed / "split.json")
    dealt = shuffled_states(states, split, 0)
    assert dealt == shuffled_states(states, split, 0) and any(shuffled_states(states, split, seed) != states for seed in range(5))
    train = set(data.clip_ids("train"))
    assert {clip_id: place for clip_id, place in dealt.items() if clip_id not in train} == \
        {clip_id: place for clip_id, place in states.items() if clip_id not in train}
    assert sorted(dealt[clip_id] for clip_id in train) == sorted(states[clip_id] for clip_id in train)
    assert all(dealt[clip_id][0] == states[clip_id][0] for clip_id in states)
