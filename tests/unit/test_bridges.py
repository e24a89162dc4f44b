"""The JSON of two other toolkits: every field survives the round trip, and sharegpt loads as its documentation says."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from clip_files import make_videos
from launching import load_script
from test_layout import touch

from vlmphys.bridges import DESCRIPTION, FORMATS, Sample, read_samples, to_sharegpt, to_video_llava
from vlmphys.clip_lists import find_clips
from vlmphys.dialogue import tokenize_dialogue
from vlmphys.layout import scan_videos
from vlmphys.prompts import SYSTEM, Turn
from vlmphys.records import Variant
from vlmphys.splits import load_split, make_split, write_split

pytestmark = pytest.mark.unit

FULL = Sample("videos/a \"b\"\né.mp4", (Turn("What parts?\n", "A hook, <b>a spring</b>."), Turn("So?", "Verdict: Normal. Reason: it moves.")),
              SYSTEM, "fan/test/stuck/a", "fan", "stuck", "train", "multi_turn")
CONVERT = dict(zip(FORMATS, (to_sharegpt, to_video_llava)))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("sample", [FULL, Sample("a.mp4", (Turn("Q", "A"),))])
def test_a_round_trip_keeps_every_field(tmp_path, form, sample):
    assert all(value for value in vars(FULL).values()), "a field that is empty in the sample proves nothing"
    (tmp_path / "x.json").write_text(json.dumps([CONVERT[form](sample), CONVERT[form](FULL)]))
    assert read_samples(tmp_path / "x.json") == [sample, FULL]


def test_documented_examples_are_read(tmp_path):
    rows = [{"messages": [{"content": "<video>Why is it slow?", "role": "user"}, {"content": "It rubs.", "role": "assistant"}],
             "videos": ["fan/test/stuck/1.mp4"]},
            {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "How?<video>"}, {"from": "gpt", "value": "So."}],
             "videos": ["fan/train/2.mp4"]},
            {"id": 0, "video": "fan/train/2.mp4", "conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "That."}]},
            {"id": "text alone", "model": "", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]}]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    assert read_samples(tmp_path / "x.json") == [
        Sample("fan/test/stuck/1.mp4", (Turn("Why is it slow?", "It rubs."),)), Sample("fan/train/2.mp4", (Turn("How?", "So."),), "Be brief."),
        Sample("fan/train/2.mp4", (Turn("What?", "That."),))]
    touch(tmp_path, "fan/test/stuck/1.mp4", "fan/train/2.mp4")
    assert [clip.clip_id for clip in find_clips(tmp_path / "x.json")] == ["fan/test/stuck/1", "fan/train/2"]


@pytest.mark.parametrize("rows, words", [
    ({}, "a list of dialogues is expected"), ([{"text": "a"}], "row 1: has neither 'messages' nor 'conversations'"),
    ([{"messages": [], "videos": ["a.mp4", "b.mp4"]}], "names 2 videos"), ([{"messages": [], "videos": [["1.png"]]}], "none that is a path"),
    ([{"messages": [{"role": "assistant", "content": "A"}], "videos": ["a.mp4"]}], "user first, assistant last"),
    ([{"messages": [{"text": "A"}], "videos": ["a.mp4"]}], "neither 'role' and 'content' nor 'from' and 'value'"),
    ([{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "videos": ["a.mp4"]}], "has no 'category'")])
def test_other_json_is_refused_with_its_row(tmp_path, rows, words):
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=f"x.json.*{words}"):
        find_clips(tmp_path / "x.json")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridges")
    make_videos(folder / "videos", {"fan": ("stuck",), "hinge": ("falloff",)}, clips=6, frames=1)
    write_split(folder / "split.json", make_split(scan_videos(folder / "videos"), "weak", per_anomaly=2))
    return folder


def export(repository, monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, words)])
    return load_script(repository / "data_prep/export.py").main()


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_read_again_is_the_same_clips_and_sides(videos, repository, monkeypatch, tmp_path, form):
    out = tmp_path / "out"
    assert export(repository, monkeypatch, "--videos", videos / "videos", "--split", videos / "split.json", "--out", out, "--format", form,
                  "--variants", "multi_turn,no_physics", *(["--relative"] if form == "sharegpt" else [])) == 0
    scanned = {clip.clip_id: clip for clip in scan_videos(videos / "videos")}
    split, seen = load_split(videos / "split.json"), []
    for side in ("train", "val", "test"):
        clips = find_clips(out / f"multi_turn_{side}.json")
        assert clips == find_clips(out / f"no_physics_{side}.json")
        assert [clip.clip_id for clip in clips] == split.clip_ids(side) and {clip.side for clip in clips} == {side}
        for clip in clips:
            own = scanned[clip.clip_id]
            assert (clip.category, clip.state, clip.label) == (own.category, own.state, own.label) and os.path.samefile(clip.path, own.path)
        seen += clips
    assert len(seen) == len(scanned)
    for sample in read_samples(out / "multi_turn_train.json"):
        said = "Verdict: Anomalous." if scanned[sample.clip_id].label else "Verdict: Normal."
        assert (len(sample.turns), sample.variant) == (4, "multi_turn") and said in sample.turns[-1].answer


def test_the_sides_of_an_export_are_joined_as_the_readme_says(videos, repository, monkeypatch, tmp_path):
    out = tmp_path / "export"
    assert export(repository, monkeypatch, "--videos", videos / "videos", "--split", videos / "split.json", "--out", out, "--relative") == 0
    (line,) = (line for line in (repository / "data_prep/README.md").read_text().splitlines() if line.startswith("cd export && "))
    subprocess.run(["bash", "-c", line.replace("python -c", f"{shlex.quote(sys.executable)} -c")], cwd=tmp_path, check=True)
    clips = find_clips(out / "clips.json")
    assert make_split(clips, "given")["clips"] == {clip_id: side.value for clip_id, side in load_split(videos / "split.json").clips.items()}


def test_an_export_in_the_other_form_is_not_written_over(videos, repository, monkeypatch, tmp_path, capsys):
    out = tmp_path / "out"

    def written(form: str, *words) -> int:
        return export(repository, monkeypatch, "--videos", videos / "videos", "--split", videos / "split.json", "--out", out, "--format", form, *words)

    for form, other in (FORMATS, FORMATS[::-1]):
        assert written(form) == 0 and written(form) == 0
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        assert written(other) == 2 and f"holds dialogues in the form {form}, which --format {other} would write over" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert written(other, "--variants", "no_physics") == 0
        shutil.rmtree(out)
    out.mkdir()
    (out / "multi_turn_train.json").write_text("my thesis")
    assert written(FORMATS[0]) == 2 and "multi_turn_train.json there holds no dialogues of ours" in capsys.readouterr().err
    assert (out / "multi_turn_train.json").read_text() == "my thesis"


def test_sharegpt_loads_with_datasets_under_its_documented_schema(videos, repository, monkeypatch, tmp_path):
    """As LLaMA-Factory's data/README.md says: columns and tags of dataset_info.json, user and assistant in turns, a video a mark."""
    from datasets import load_dataset
    out = tmp_path / "out"
    for words in (["--system"], ["--variants", "single_turn"]):
        assert export(repository, monkeypatch, "--videos", videos / "videos", "--split", videos / "split.json", "--out", out, *words) == 0
    info = json.loads((out / "dataset_info.json").read_text())
    assert sorted(info) == sorted(f"vlmphys_{variant}_{side}" for variant in ("multi_turn", "single_turn") for side in ("train", "val", "test"))
    rows = 0
    for name, entry in info.items():
        assert entry["formatting"] == "sharegpt" and entry["tags"] == DESCRIPTION["tags"]
        table = load_dataset("json", data_files=str(out / entry["file_name"]), split="train", cache_dir=str(tmp_path / "cache"))
        columns, tags = entry["columns"], entry["tags"]
        assert set(columns.values()) <= set(table.column_names) and ("system" in columns) == name.startswith("vlmphys_multi_turn")
        for row in table:
            rows += 1
            messages = row[columns["messages"]]
            assert all(set(message) == {tags["role_tag"], tags["content_tag"]} for message in messages)
            assert [message[tags["role_tag"]] for message in messages] == [tags["user_tag"], tags["assistant_tag"]] * (len(messages) // 2)
            marks = sum(message[tags["content_tag"]].count("<video>") for message in messages)
            assert marks == len(row[columns["videos"]]) == 1 and os.path.isfile(row[columns["videos"]][0])
            assert "system" not in columns or row[columns["system"]] == SYSTEM
    assert rows == 2 * len(load_split(videos / "split.json").clips)


def test_exported_texts_are_those_that_are_packed(videos, repository, monkeypatch, tmp_path, tiny_model_folder):
    from vlmphys.dialogue_packing import DialogueMaker, DialogueSettings, pack_dialogues
    from vlmphys.model import load_tokenizer, read_facts
    from vlmphys.priors import load_priors
    from vlmphys.shards import DialogueTable
    split, clips = load_split(videos / "split.json"), scan_videos(videos / "videos")
    tokenizer = load_tokenizer(str(tiny_model_folder))
    facts = read_facts(str(tiny_model_folder), tokenizer)
    variants = [variant.value for variant in Variant]
    maker = DialogueMaker(facts, tokenizer, load_priors({"fan", "hinge"}), 8, DialogueSettings(tuple(variants), seed=3, system=True))
    (tmp_path / "packed").mkdir()
    pack_dialogues({clip.clip_id: (clip.category, clip.state) for clip in clips}, split, tmp_path / "packed", maker)
    table = DialogueTable.open(tmp_path / "packed/dialogues")
    assert export(repository, monkeypatch, "--videos", videos / "videos", "--split", videos / "split.json", "--out", tmp_path / "out", "--system",
                  "--seed", 3, "--variants", ",".join(variants)) == 0
    compared = 0
    for path in (tmp_path / "out").glob("*_*.json"):
        for sample in read_samples(path) if path.name != "dataset_info.json" else ():
            tokens = tokenize_dialogue(sample.turns, tokenizer, 8 * facts.tokens_per_frame, facts.max_positions, sample.clip_id, sample.system)
            assert tokens.input_ids == table.row(sample.clip_id, sample.variant).input_ids.tolist()
            compared += 1
    assert compared == len(table)


def test_folders_of_frames_cannot_be_exported(repository, monkeypatch, tmp_path, capsys):
    for name in ("train/frames/0001_fan_train", "test/frames/0001_fan_stuck", "test/frames/0002_fan_stuck"):
        (tmp_path / "videos/fan" / name).mkdir(parents=True)
    write_split(tmp_path / "split.json", make_split(find_clips(tmp_path / "videos"), "weak", per_anomaly=1))
    assert export(repository, monkeypatch, "--videos", tmp_path / "videos", "--split", tmp_path / "split.json", "--out", tmp_path / "out") == 2
    assert "is a folder of frames" in capsys.readouterr().err and not (tmp_path / "out").exists()
