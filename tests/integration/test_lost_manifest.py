"""Packing over what is not as pack.py left it: shards that change under it, manifests that are cut off, gone or newer, another split."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from clip_files import make_videos
from launching import load_script

from vlmphys import packing, shard_files, unfinished
from vlmphys.files import only_writer
from vlmphys.layout import Clip, scan_videos
from vlmphys.packing import FrameSettings, PackReport, check_kept, pack_frames
from vlmphys.shards import FramesTable
from vlmphys.splits import make_split, write_split
from vlmphys.takeover import FormerRows
from vlmphys.verifying import verify

pytestmark = pytest.mark.integration

SETTINGS = FrameSettings(8, 32)
CLIPS = 9


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(packing, "CLIPS_PER_SHARD", 4)
    monkeypatch.setattr(packing, "FRAMES_PER_BATCH", 2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """9 good clips of one category."""
    return make_videos(tmp_path_factory.mktemp("videos"), {"fan": ("stuck",)}, clips=3)


@pytest.fixture(scope="module")
def once(videos, tmp_path_factory) -> Path:
    """They are packed: shards of 4, 4 and 1 clips."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(packing, "CLIPS_PER_SHARD", 4)
        patched.setattr(packing, "FRAMES_PER_BATCH", 2)
        out = tmp_path_factory.mktemp("packed")
        assert pack(scan_videos(videos), out).decoded == CLIPS
    return out


@pytest.fixture
def out(once, tmp_path) -> Path:
    """A packed folder that a test may change."""
    return Path(shutil.copytree(once, tmp_path / "packed"))


def pack(clips: list[Clip], out: Path, settings: FrameSettings = SETTINGS, **options) -> PackReport:
    return pack_frames(clips, out, settings, 0, **options)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("change", (lambda path: os.truncate(path, path.stat().st_size // 3), Path.unlink,
                                    lambda path: shutil.copyfile(path.with_name("frames-00001.arrow"), path)), ids=("cut", "gone", "replaced"))
def test_a_shard_that_changes_while_its_rows_are_copied_is_named(videos, out, monkeypatch, change):
    clips, really, shard = scan_videos(videos), FormerRows.row, out / "frames/frames-00000.arrow"

    def row(self, clip, sha256):
        if clip.clip_id == clips[2].clip_id:
            change(shard)
        return really(self, clip, sha256)

    monkeypatch.setattr(FormerRows, "row", row)
    with pytest.raises(ValueError, match="frames-00000.arrow: was cut off or replaced while rows of it were copied"):
        pack([replace(clips[0], state="loose"), *clips[1:]], out)


@pytest.mark.parametrize("part", ("batch", "footer"))
def test_a_full_disk_loses_no_whole_batch_of_an_unfinished_shard(videos, tmp_path, monkeypatch, part):
    """The second shard's second batch does not fit, or what ends the file after both."""
    clips, out, really = scan_videos(videos), tmp_path / "packed", shard_files._HashedFile.write
    out.mkdir()

    def write(self, data) -> int:
        path = Path(self._stream.name)
        if path.name == "frames-00001.arrow.tmp":
            lines = path.with_name("frames-00001.arrow.batches")
            if lines.is_file() and lines.read_text().count("\n") == (1 if part == "batch" else 2):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(self, data)

    with monkeypatch.context() as patched:
        patched.setattr(shard_files._HashedFile, "write", write)
        with pytest.raises(ValueError, match="no space left .* finished shards, and all of the next one but its last few clips, are kept"):
            pack(clips, out)
    report = pack(clips, out)
    kept = 4 + (2 if part == "batch" else 4)
    assert (report.taken_over, report.decoded) == (kept, CLIPS - kept)
    pack(clips, tmp_path)
    assert tree(out / "frames") == tree(tmp_path / "frames")


def cut(path: Path) -> None:
    """In the middle of the second shard's line."""
    text = path.read_text()
    os.truncate(path, len(text[:text.index("frames-00001.arrow")].encode()))


DAMAGE = (cut, lambda path: os.truncate(path, 0), Path.unlink, lambda path: path.write_bytes(bytes(path.stat().st_size)))


@pytest.mark.parametrize("damage, unproven", zip(DAMAGE, (2, 3, 3, 3)), ids=("cut", "empty", "gone", "zeros"))
def test_a_lost_manifest_loses_no_row(videos, once, out, damage, unproven):
    clips, before = scan_videos(videos), tree(once)
    damage(out / "frames/manifest.json")
    damaged = tree(out)
    with pytest.raises(ValueError, match="frames/manifest.json: .* --repair.*"):
        FramesTable.open(out / "frames")
    for call in (check_kept, pack_frames):
        with pytest.raises(ValueError, match=r"frames/manifest.json: .*again with --repair, .* or with --restart, which decodes all anew"):
            call(clips, out, SETTINGS, *((0,) if call is pack_frames else ()))
    with pytest.raises(ValueError, match=r"settings differ \(fit crop -> stretch\), and 9 finished"):
        check_kept(clips, out, replace(SETTINGS, fit="stretch"), repair=True)
    assert tree(out) == damaged
    check_kept(clips, out, SETTINGS, repair=True)
    report = pack(clips, out, repair=True)
    assert (report.taken_over, report.decoded, len(report.unproven)) == (CLIPS, 0, unproven) and tree(out) == before


def test_beside_a_lost_manifest_a_cut_shard_gives_no_row_and_restart_decodes_all(videos, once, out):
    clips, before = scan_videos(videos), tree(once)
    (out / "frames/manifest.json").unlink()
    os.truncate(out / "frames/frames-00001.arrow", (out / "frames/frames-00001.arrow").stat().st_size - 1)
    report = pack(clips, out, repair=True)
    assert (report.taken_over, report.decoded) == (CLIPS - 4, 4) and tree(out) == before
    (out / "frames/manifest.json").unlink()
    report = pack(clips, out, restart=True)
    assert (report.taken_over, report.decoded) == (0, CLIPS) and tree(out) == before


@pytest.mark.parametrize("damage", (Path.unlink, cut), ids=("gone", "cut"))
def test_what_was_decoded_over_a_lost_manifest_is_not_lost_to_a_kill_before_it_has_its_name(videos, once, out, monkeypatch, damage):
    damage(out / "frames/manifest.json")

    def killed(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(packing, "swap_folder", killed)
        pack(scan_videos(videos), out, restart=True)
    assert pack(scan_videos(videos), out).skipped and tree(out) == tree(once)


def test_what_is_left_of_a_manifest_tells_the_reader_and_a_flipped_shard(videos, out):
    """The first line's sha256 is left; a shard of other bytes is one that nothing proves."""
    text, clips = (out / "frames/manifest.json").read_text(), scan_videos(videos)
    cut(out / "frames/manifest.json")
    with pytest.raises(ValueError, match=r"settings differ \(reader auto -> pyav\), and 9 finished"):
        check_kept(clips, out, replace(SETTINGS, reader="pyav"), repair=True)
    (out / "frames/manifest.json").write_text(text[:text.rindex("sha256")])
    report = pack(clips, out, repair=True)
    assert [Path(path).name for path in report.unproven] == ["frames-00002.arrow"]


def test_a_folder_with_a_strangers_file_is_not_one_whose_manifest_is_lost(videos, out):
    (out / "frames/manifest.json").unlink()
    (out / "frames/thesis.arrow").write_text("dear")
    for options in ({"repair": True}, {"restart": True}):
        with pytest.raises(ValueError, match="was not written by data_prep/pack.py"):
            pack(scan_videos(videos), out, **options)


@pytest.mark.parametrize("place, name, said", ((unfinished, "stream_of", r"frames-00000\.arrow"), (Path, "read_bytes", r"manifest\.json")))
def test_packed_files_that_may_not_be_read_are_named(videos, out, monkeypatch, place, name, said):
    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(place, name, refused)
    with pytest.raises(ValueError, match=rf"frames/{said}: cannot be read \(Permission denied\)") as raised:
        check_kept(scan_videos(videos)[1:], out, SETTINGS)
    assert "delete" not in str(raised.value), "the shards are whole"


def test_somebodys_arrow_file_among_the_shards_counts_for_nothing(videos, out):
    with pa.ipc.new_file(out / "frames/mine.arrow", pa.schema([("x", pa.int64())])) as writer:
        writer.write_table(pa.table({"x": [1]}))
    assert check_kept(scan_videos(videos)[1:], out, SETTINGS) == ["1 packed clip is not in this split and will be dropped"]


def test_frames_of_a_newer_version_are_replaced_with_restart_alone(videos, once, out):
    path, clips = out / "frames/manifest.json", scan_videos(videos)
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    before = tree(out)
    for repair in (False, True):
        with pytest.raises(ValueError, match="version 99 is not known here, only 1; use the vlmphys that wrote it, or .* --restart"):
            check_kept(clips, out, SETTINGS, repair=repair)
        with pytest.raises(ValueError, match="version 99 is not known here"):
            pack(clips, out, repair=repair)
    assert tree(out) == before
    assert pack(clips, out, restart=True).decoded == CLIPS and tree(out) == tree(once)


@pytest.fixture
def command(videos, out, repository, tiny_model_folder, tmp_path, monkeypatch, capsys):
    """Call pack.py within this process on the packed folder: `command(status, *more)` returns what it said. `--split` holds all clips."""
    write_split(tmp_path / "split.json", make_split(scan_videos(videos), "weak", per_anomaly=1))
    module = load_script(repository / "data_prep/pack.py")
    monkeypatch.chdir(repository)

    def call(status: int, *more: object) -> str:
        words = ["--videos", videos, "--split", tmp_path / "split.json", "--model", tiny_model_folder, "--out", out, "--workers", 0, *more]
        monkeypatch.setattr("sys.argv", ["pack", *map(str, words)])
        capsys.readouterr()
        code = module.main()
        said = capsys.readouterr()
        assert code == status, said
        return said.out + said.err

    call.module = module
    return call


def test_what_is_cheap_to_make_is_made_anew_where_it_is_cut_off_and_a_lost_manifest_is_told(command, out):
    assert "frames: already packed" in command(0)
    before = tree(out)
    for name in ("dialogues/manifest.json", "split.json"):
        for damage in (lambda path: os.truncate(path, path.stat().st_size // 2), lambda path: os.truncate(path, 0), Path.unlink):
            damage(out / name)
            said = command(0)
            assert "frames: already packed" in said and tree(out) == before
    (out / "frames/manifest.json").unlink()
    for more in ((), ("--check",)):
        assert "--repair" in command(2, *more)
    (check,) = verify(out)
    assert "frames/manifest.json: no such file; run the same data_prep/pack.py command again with --repair" in check.problems[0]
    said = command(0, "--repair")
    assert "9 taken over, 0 decoded" in said and "rows of 3 shards were taken over that nothing proves, first frames-00000.arrow" in said
    assert tree(out) == before


def fewer(tmp_path: Path, videos: Path, count: int) -> Path:
    """A split that names the first so many clips of each side."""
    split = json.loads((tmp_path / "split.json").read_text())
    sides = {side: [clip_id for clip_id in sorted(split["clips"]) if split["clips"][clip_id] == side][:count] for side in ("train", "test")}
    write_split(tmp_path / "fewer.json", {**split, "clips": {clip_id: side for side, clip_ids in sides.items() for clip_id in clip_ids}})
    return tmp_path / "fewer.json"


def test_packed_clips_that_a_split_no_longer_names_do_not_go_in_silence(command, videos, out, tmp_path):
    assert "packed" in command(0)
    before = tree(out)
    few = fewer(tmp_path, videos, 2)
    for more in ((), ("--check",), ("--repair",)):
        said = command(2, "--split", few, *more)
        assert "5 of 9 packed clips are not in this split and would be dropped, first 'fan/" in said and "--drop" in said
    assert tree(out) == before
    assert "5 packed clips are not in this split and will be dropped" in command(0, "--split", few, "--check", "--drop")
    most = fewer(tmp_path, videos, 4)
    for more in (("--check",), ()):
        said = command(0, "--split", most, *more)
        assert "1 packed clip is not in this split and will be dropped" in said
    assert "8 taken over, 0 decoded" in said
    said = command(0, "--split", fewer(tmp_path, videos, 1), "--drop")
    assert "6 packed clips are not in this split and will be dropped" in said and "2 taken over, 0 decoded" in said
    assert "not in this split" not in command(0)


def test_an_unfinished_folder_counts_too(videos, tmp_path):
    clips, out = scan_videos(videos), tmp_path / "packed"
    out.mkdir()

    def progress(done: int, bad: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(clips, out, progress=progress)
    assert list((out / "frames.partial").glob("*.arrow.tmp"))
    before = tree(out)
    with pytest.raises(ValueError, match="5 of 6 packed clips are not in this split"):
        check_kept(clips[5:], out, SETTINGS)
    assert check_kept(clips[5:], out, SETTINGS, drop=True) and check_kept(clips[1:], out, SETTINGS) and not check_kept(clips, out, SETTINGS)
    assert tree(out) == before


def test_what_would_be_lost_is_looked_at_under_the_lock(command, out, monkeypatch):
    locked, really = [], command.module.check_kept

    def check(*arguments):
        with pytest.raises(ValueError, match="another process is packing into this folder"), only_writer(out):
            pass
        locked.append(True)
        return really(*arguments)

    monkeypatch.setattr(command.module, "check_kept", check)
    command(0)
    assert locked == [True]


def test_videos_that_no_side_of_the_split_names_are_counted(command, videos, out, tmp_path):
    words = "clips of the videos are in no side of the split: split again to use them"
    assert "in no side of the split" not in command(0, "--check")
    assert f"5 {words}" in command(0, "--split", fewer(tmp_path, videos, 2), "--check", "--drop")
    said = command(0, "--split", fewer(tmp_path, videos, 4))
    assert "1 clip of the videos is in no side of the split: split again to use it" in said and "frames: packed, 8 rows" in said


def test_clips_of_categories_that_a_split_leaves_out_are_not_counted(command, videos, tmp_path):
    """As `split.py --categories` writes one, and reproduce_paper.sh --per-category packs it."""
    more = Path(shutil.copytree(videos, tmp_path / "more"))
    shutil.copytree(more / "fan", more / "gear")
    assert "in no side of the split" not in command(0, "--videos", more, "--check")
