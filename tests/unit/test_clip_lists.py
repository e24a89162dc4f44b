"""Lists of clips: the same clips as the folder gives, ids that hang on their own line alone, and each mistake named with its line."""

from __future__ import annotations

import csv
import json
import random

import numpy as np
import pytest
from clip_files import encode_clip, moving_images
from PIL import Image
from test_layout import touch

from vlmphys.clip_lists import check_listed, find_clips
from vlmphys.layout import scan_videos
from vlmphys.packing import ClipPixels, ClipTask, FrameSettings, decode_clip
from vlmphys.pixels import fit_frames
from vlmphys.sources import clip_stat, sha256_clip
from vlmphys.video import VideoError, read_frames

pytestmark = pytest.mark.unit


def write_list(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        with open(path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
    return path


def facts(clips):
    return [(clip.clip_id, clip.category, clip.state, clip.label, clip.in_train_folder) for clip in clips]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_list_of_the_layout_is_the_folder(tmp_path, suffix):
    touch(tmp_path, "fan/train/0001.mp4", "fan/test/stuck/0003.mp4", "fan/test/anomaly_free/a, \"b\".mp4", "ball/test/leak/1.mkv")
    scanned = scan_videos(tmp_path)
    rows = [{"path": str(clip.path.relative_to(tmp_path)), "category": clip.category, "state": clip.state} for clip in scanned]
    random.Random(0).shuffle(rows)
    assert find_clips(write_list(tmp_path / f"clips{suffix}", rows)) == scanned == find_clips(tmp_path)
    paths = [{"path": row["path"]} for row in rows]
    assert find_clips(write_list(tmp_path / f"paths{suffix}", paths)) == scanned
    absolute = [{**row, "path": str(tmp_path / row["path"])} for row in rows]
    assert find_clips(write_list(tmp_path / f"absolute{suffix}", absolute)) == scanned


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_factory_archive_by_label_state_and_split(tmp_path, suffix):
    touch(tmp_path, "cam1/17.mp4", "cam2/17.mp4", "cam2/18.mp4", "cam2/train/19.mp4")
    rows = [{"path": "cam1/17.mp4", "category": "valve", "label": "0", "split": "train"},
            {"path": "cam2/17.mp4", "category": "valve", "state": "leak"},
            {"path": "./cam2/18.mp4", "category": "valve", "label": "Anomalous", "split": "test"},
            {"path": "cam2/train/19.mp4", "category": "valve", "label": "normal", "clip_id": "valve/mine"}]
    path = write_list(tmp_path / f"clips{suffix}", [{**row, "shift": "night"} for row in rows])
    found = find_clips(path)
    assert [(*fact, clip.side) for fact, clip in zip(facts(found[:3]), found)] == [
        ("valve/mine", "valve", "anomaly_free", 0, False, None),
        ("valve/test/anomalous/cam2__18", "valve", "anomalous", 1, False, "test"),
        ("valve/test/leak/cam2__17", "valve", "leak", 1, False, None)]
    assert found[3].clip_id == "valve/train/cam1__17" and found[3].in_train_folder and found[3].path == tmp_path / "cam1/17.mp4"
    # A table that was kept in memory: gaps make 0 and 1 to 0.0 and 1.0. A path may begin with a tilde that stands for nobody.
    floats = find_clips(write_list(path, [{**rows[0], "label": 0.0, "state": " "}, {**rows[2], "path": "~cam2/18.mp4", "label": "1.0"}]))
    assert [(clip.clip_id, clip.label) for clip in floats] == [("valve/test/anomalous/~cam2__18", 1), ("valve/train/cam1__17", 0)]
    # An id hangs on its own line: others may come and go.
    assert find_clips(write_list(path, rows[:1]))[0] == found[3]


@pytest.mark.parametrize("rows, words", [
    ([{"path": "a.mp4"}], "line [12]: 'a.mp4' has no 'category'"), ([{"path": "a.mp4", "category": "fan"}], "neither 'state' nor 'label'"),
    ([{"path": "a.mp4", "category": "fan", "label": "bad"}], "label 'bad': must be one of 0, 1, normal, anomalous"),
    ([{"path": "a.mp4", "category": "fan", "state": "stuck", "label": "0"}], "contradict each other"),
    ([{"path": "a.mp4", "category": "fan", "state": "stuck", "split": "tset"}], "split 'tset': .*did you mean 'test'"),
    ([{"path": "a.mp4", "category": "fan", "state": "stuck", "clip_id": "x"}], "must begin with its category"),
    ([{"path": "a.mp4", "category": "fan", "state": "Defect_free"}], "normal is anomaly_free, or leave state empty"),
    ([{"path": "a.mp4", "category": "f/an", "state": "stuck"}], "cannot be a folder's name"),
    ([{"path": "a.mp4", "category": "fan", "state": "stuck"}] * 2, "line [23]: .*list each clip once"),
    ([{"path": "b.mp4", "category": "fan", "state": "stuck"}], "none of the 1 listed files is there"),
    ([{"path": "a.mp4", "category": "fan", "state": " "}], "neither 'state' nor 'label'"),
    ([{"path": "a.mp4", "category": "fan", "state": "stuck", "spilt": "test"}], "column 'spilt' is not known .did you mean 'split'"),
    ([{"path": "a.mp4", "Category": "fan", "state": "stuck"}], "column 'Category' is not known .did you mean 'category'"),
    ([{"path": "a\0.mp4", "category": "fan", "state": "stuck"}], r"'a\\x00.mp4' can be no file's name"),
    ([{"path": "x" * 5000, "category": "fan", "state": "stuck"}], "none of the 1 listed files is there"),
    ([{"category": "fan", "state": "stuck"}], "path")])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_mistakes_are_named_with_their_line(tmp_path, suffix, rows, words):
    touch(tmp_path, "a.mp4")
    with pytest.raises(ValueError, match=words) as error:
        find_clips(write_list(tmp_path / f"clips{suffix}", rows))
    assert f"clips{suffix}" in str(error.value)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_table_with_semicolons_or_tabs_is_the_one_with_commas(tmp_path, mark):
    touch(tmp_path, "a, b.mp4", "c.mp4")
    rows = [["path", "category", "state"], ["a, b.mp4", "fan", "stuck"], ["c.mp4", "fan", "anomaly_free"]]
    with open(tmp_path / "commas.csv", "w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    (tmp_path / "other.csv").write_text("".join(mark.join(row) + "\n" for row in rows))
    assert find_clips(tmp_path / "other.csv") == find_clips(tmp_path / "commas.csv") and len(find_clips(tmp_path / "other.csv")) == 2


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_listed_files_that_are_not_there_are_named_with_their_lines(tmp_path, suffix):
    touch(tmp_path, "fan/train/0.mp4", "fan/test/stuck/0.mp4")
    (tmp_path / "fan/train/1.mp4").symlink_to(tmp_path / "nowhere")
    names = ["fan/train/0.mp4", "fan/train/1.mp4", "fan/test/stuck/0.mp4", *(f"fan/test/stuck/wrong{number}.mp4" for number in range(6)), "x\\y.mp4"]
    turns = [{"from": "human", "value": "<video>\nWell?"}, {"from": "gpt", "value": "Yes."}]
    rows = [{**({"video": name, "conversations": turns} if suffix == ".json" else {"path": name}), "category": "fan",
             "state": "anomaly_free" if "train" in name else "stuck"} for name in names]
    path = write_list(tmp_path / f"clips{suffix}", rows)
    clips = find_clips(path)
    with pytest.raises(ValueError) as error:
        check_listed(path, clips)
    first = {".csv": "line 5", ".jsonl": "line 4", ".json": "row 4"}[suffix]
    said = str(error.value)
    assert f"7 of 10 listed files are not there: {first}: {tmp_path}/fan/test/stuck/wrong0.mp4" in said and "and 2 more" in said
    assert "wrong4" in said and "wrong5" not in said and "forward slashes" in said
    check_listed(path, [clip for clip in clips if clip.path.name in ("0.mp4", "1.mp4")])    # a link that leads nowhere is packing's to name
    check_listed(tmp_path, find_clips(tmp_path))


def test_what_is_no_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is neither a folder nor a list of clips"):
        find_clips(touch(tmp_path, "clip.mp4") / "clip.mp4")
    with pytest.raises(ValueError, match="no such folder"):
        find_clips(tmp_path / "clips.csv")
    for name, text, words in (("a.jsonl", "{", "line 1: no JSON"), ("b.jsonl", "3\n", "a JSON object is expected"), ("c.csv", "", "names nothing"),
                              ("d.csv", "paths,category\n", "is 'paths' the path"), ("e.jsonl", "\n", "lists no clip"),
                              ("f.csv", "path|category|state\n", "with commas .* between them; it names path.category"),
                              ("n.csv", "path;category;state\n", "lists no clip"), ("g.csv", "path,state,path\n", "'?path'? twice"),
                              ("h.csv", "path,state\na,b.mp4,stuck\n", "line 2: has more values than the 2 columns"),
                              ("i.csv", f"path,state\n{'x' * 200_000},stuck\n", "after line 1: no CSV"),
                              ("j.jsonl", "[" * 100_000, "line 1: no JSON"), ("k.json", "[" * 100_000, "not valid JSON"),
                              ("l.jsonl", '{"path": ["a.mp4"]}\n', "'path' must be a text or a number"),
                              ("m.jsonl", '{"path": "\\ud800.mp4"}\n', "can be no file's name")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=words):
            find_clips(tmp_path / name)


def frames_clip(folder, numbers, seed=0, suffix=".png"):
    folder.mkdir(parents=True)
    images = moving_images(len(numbers), 48, 64, seed)
    for number, image in zip(numbers, images):
        Image.fromarray(image).save(folder / f"frame_{number:04d}{suffix}")
    return np.stack(images)


def test_extracted_frames_are_clips_and_read_like_videos(tmp_path):
    pictures = frames_clip(tmp_path / "fan/test/frames/0003_fan_stuck", range(1, 14))
    frames_clip(tmp_path / "caster_wheel/train/frames/0001_caster_wheel_normal", range(9), 1)
    frames_clip(tmp_path / "caster_wheel/test/frames/0001_caster_wheel_axis_stuck1", range(9), 2)
    frames_clip(tmp_path / "fan/test/frames/0004_fan_anomaly_free", range(0, 50, 5), 3)
    clips = find_clips(tmp_path)
    assert facts(clips) == [
        ("caster_wheel/test/axis_stuck1/0001_caster_wheel_axis_stuck1", "caster_wheel", "axis_stuck1", 1, False),
        ("caster_wheel/train/0001_caster_wheel_normal", "caster_wheel", "anomaly_free", 0, True),
        ("fan/test/anomaly_free/0004_fan_anomaly_free", "fan", "anomaly_free", 0, False),
        ("fan/test/stuck/0003_fan_stuck", "fan", "stuck", 1, False)]
    read = read_frames(clips[3].path, "official", 8)
    assert read.frame_index.tolist() == np.linspace(0, 12, 8).astype(int).tolist() and (read.n_frames, read.fps) == (13, 0.0)
    assert np.array_equal(read.frames_THWC, pictures[read.frame_index])
    packed = decode_clip(ClipTask(str(clips[3].path), FrameSettings(8, 32)))
    assert isinstance(packed, ClipPixels) and np.array_equal(packed.frames_STHWC[0], fit_frames(read.frames_THWC, 32))
    assert packed.sha256 == sha256_clip(clips[3].path) != sha256_clip(clips[2].path)
    assert read_frames(clips[2].path, "hf", 8).n_frames == 10
    rows = [{"path": str(clip.path.relative_to(tmp_path))} for clip in clips]
    assert find_clips(write_list(tmp_path / "clips.csv", rows)) == clips


def test_frames_are_passed_over_where_there_are_videos_and_refused_where_they_are_misnamed(tmp_path):
    frames_clip(tmp_path / "fan/test/frames/0003_fan_stuck", range(3))
    touch(tmp_path, "fan/test/stuck/0003.mp4")
    assert [clip.clip_id for clip in find_clips(tmp_path)] == ["fan/test/stuck/0003"]
    frames_clip(tmp_path / "gear/test/frames/0003_fan_stuck", range(3))
    with pytest.raises(ValueError, match="outside the layout, first 'gear/test/frames/0003_fan_stuck'"):
        find_clips(tmp_path)


def test_a_folder_of_frames_that_is_not_whole_says_why(tmp_path):
    good = tmp_path / "good"
    frames_clip(good, range(10))
    size, changed = clip_stat(good)
    picture = good / "frame_0004.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:60])
    assert clip_stat(good) != (size, changed)
    with pytest.raises(VideoError, match="is damaged: frame_0004.png does not decode"):
        read_frames(good, frames=10)
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(picture)
    with pytest.raises(VideoError, match="frame_0004.png holds I;16 pixels"):
        read_frames(good, frames=10)
    picture.unlink()
    with pytest.raises(VideoError, match="lacks frames after frame_0003.png"):
        read_frames(good)
    picture.write_bytes(whole)
    (good / "frame_004.jpg").write_bytes(whole)
    with pytest.raises(VideoError, match="two of its pictures have the number 4"):
        read_frames(good)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="without a picture"):
        read_frames(tmp_path / "empty")
    touch(tmp_path, "named/first.png")
    with pytest.raises(VideoError, match="'first.png' has no number"):
        read_frames(tmp_path / "named")


def test_a_video_and_its_frames_pack_to_the_same_pixels(tmp_path):
    path = encode_clip(tmp_path / "clip.mp4", 20, 48, 64, options={"qp": "0"}, pixels="yuv444p")
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, image in enumerate(read_frames(path, frames=20).frames_THWC):
        Image.fromarray(image).save(folder / f"frame_{number:04d}.png")
    settings = FrameSettings(8, 32)
    first, second = decode_clip(ClipTask(str(path), settings)), decode_clip(ClipTask(str(folder), settings))
    assert np.array_equal(first.frames_STHWC, second.frames_STHWC) and np.array_equal(first.index_ST, second.index_ST)
