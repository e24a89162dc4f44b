"""The oracle on made-up trajectories: a fault that motion shows is found, one too fast for 8 frames is named, no fault gives a half."""

from __future__ import annotations

import errno
import json
from functools import partial

import numpy as np
import pytest
from launching import load_script

from vlmphys import probing

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def oracle(repository):
    module = load_script(repository / "tests/bench/oracle.py")
    module.forest, module.REPEATS = partial(probing.forest, trees=20), 1
    return module


def write_bench(root, category: str, path_of, states=("stuck",), clips: int = 6):
    """Empty videos with a truth beside each: `path_of(generator, state)` gives the channels."""
    generator = np.random.default_rng(0)
    for place in ("train", "test/anomaly_free", *(f"test/{state}" for state in states)):
        folder = root / category / place
        folder.mkdir(parents=True)
        for number in range(clips):
            (folder / f"{number}.mp4").touch()
            channels = path_of(generator, place.rpartition("/")[2])
            (folder / f"{number}.json").write_text(json.dumps({"trajectory": {name: values.tolist() for name, values in channels.items()}}))


def swing(generator, state):
    reach = generator.uniform(0.8, 1.0) * (0.4 if state == "stuck" else 1.0)
    return {"arm": reach * np.sin(np.linspace(0, np.pi, 120)), "other": np.full(120, generator.normal())}


def twitch(generator, state):
    """The arm jumps aside for two frames, between those that 8 or 16 samples would show."""
    path = np.full(120, generator.normal(0, 0.01))
    if state == "stuck":
        path[21:23] += 1.0
    return {"arm": path}


def nothing(generator, state):
    return {"arm": generator.uniform(0.8, 1.0) * np.sin(np.linspace(0, np.pi, 120))}


def run(oracle, root, capsys, *more):
    status = oracle.main(["--videos", str(root), *more])
    written = capsys.readouterr()
    return status, written.out, written.err


def test_it_finds_what_moves_and_names_what_8_frames_cannot_show(tmp_path, oracle, capsys):
    write_bench(tmp_path / "v", "swing", swing)
    write_bench(tmp_path / "v", "twitch", twitch)
    write_bench(tmp_path / "v", "nothing", nothing)
    status, out, _ = run(oracle, tmp_path / "v", capsys, "--json", str(tmp_path / "o.json"))
    assert status == 0
    found = json.loads((tmp_path / "o.json").read_text())
    areas = {category: row["auroc"] for category, row in found["categories"].items()}
    assert areas["swing"]["true"] == areas["swing"]["8"] == 1.0
    assert areas["twitch"]["true"] == 1.0 and areas["twitch"]["8"] < 0.8
    assert 0.15 < areas["nothing"]["true"] < 0.8
    assert any(sentence.startswith("twitch: 8 frames") for sentence in found["aliased"])
    assert not any(sentence.startswith("swing") for sentence in found["aliased"])
    assert "below 0.99 with the true motion: nothing" in out
    assert "below 0.99 with 8 even frames: nothing" in out and "; twitch/stuck" in out


def test_aliasing_is_judged_by_the_loss(oracle):
    row = {0: 1.0, 4: 0.7, 8: 0.9, 16: 0.97, 32: 0.985}
    assert oracle.aliased({"fan": {"auroc": row}}) == ["fan: 8 frames (0.900) do not show what the true motion does (1.000), 32 frames (0.985) do"]
    assert oracle.aliased({"fan": {"auroc": row | {8: 0.985}}}) == []
    assert oracle.aliased({"fan": {"auroc": row | {32: 0.9}}})[0].endswith("32 frames do not either")
    assert oracle.aliased({"fan": {"auroc": row | {oracle.UNEVEN: 0.99}}})[0].endswith("32 frames (0.985) do; 8 uneven ones: 0.990")


def test_uneven_gaps_show_a_swing_that_even_ones_meet_at_one_phase(oracle):
    assert oracle.uneven_indices(101, 8).tolist() == [0, 10, 30, 40, 60, 70, 90, 100]
    swinging = {"arm": np.cos(2 * np.pi * np.arange(141) / 20)}
    assert np.ptp(oracle.seen(swinging, 8, frozenset(), 0.0, 0)["arm"]) < 1e-9
    assert np.ptp(oracle.seen(swinging, oracle.UNEVEN, frozenset(), 0.0, 0)["arm"]) > 0.5


def test_turning_parts_come_from_the_mechanism(oracle):
    assert oracle.turning_channels("fan") == {"blade"} and oracle.turning_channels("slide") == frozenset() == oracle.turning_channels("unknown")


def test_a_bad_trajectory_is_told_before_any_forest_is_grown(tmp_path, oracle, capsys, monkeypatch):
    write_bench(tmp_path / "v", "ant", swing, clips=2)
    write_bench(tmp_path / "v", "zebra", swing, clips=2)
    (tmp_path / "v/zebra/train/0.json").unlink()
    monkeypatch.setattr(oracle, "separate", None)
    assert "zebra/train/0.json: no such file" in run(oracle, tmp_path / "v", capsys)[2]


def test_a_folder_that_takes_no_file_is_told_in_one_sentence(tmp_path, oracle, capsys, monkeypatch):
    write_bench(tmp_path / "v", "swing", swing, clips=2)

    def refuse(path, data):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(oracle, "write_atomic", refuse)
    status, _, error = run(oracle, tmp_path / "v", capsys, "--json", str(tmp_path / "o.json"))
    assert status == 2 and "o.json cannot be written (Read-only file system): give a file that you may write to" in error


def test_what_is_no_bench_is_refused_in_one_sentence(tmp_path, oracle, capsys):
    write_bench(tmp_path / "v", "swing", swing, clips=2)
    assert run(oracle, tmp_path / "v", capsys, "--grain", "-1")[::2] == (2, "error: --grain is -1.0: 0 or more and below 1 is needed\n")
    truth = tmp_path / "v/swing/train/0.json"
    truth.write_text('{"trajectory": {"arm": [1, 2], "other": [1]}}')
    assert "--frames is '8,x': give whole numbers from 2 on" in run(oracle, tmp_path / "v", capsys, "--frames", "8,x")[2]
    assert "its channels differ in length" in run(oracle, tmp_path / "v", capsys)[2]
    truth.write_text('{"trajectory": {"arm": [1, 2, 3]}}')
    assert "hold different channels" in run(oracle, tmp_path / "v", capsys)[2]
    truth.write_text('{"trajectory": {"arm": [1], "other": [1]}}')
    assert f"{truth}: its trajectory has fewer than 2 frames, which show no motion; write the clip anew" in run(oracle, tmp_path / "v", capsys)[2]
    truth.write_text('{"trajectory": {"arm": ["left", 2]}}')
    assert "0.json: a channel holds no list of numbers" in run(oracle, tmp_path / "v", capsys)[2]
    assert f"--json {tmp_path} is a folder" in run(oracle, tmp_path / "v", capsys, "--json", str(tmp_path))[2]
    truth.unlink()
    status, _, error = run(oracle, tmp_path / "v", capsys)
    assert status == 2 and "0.json: no such file; the oracle reads benches that data_prep/simulate.py wrote" in error
