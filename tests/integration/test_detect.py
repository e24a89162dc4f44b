"""`vlmphys calibrate` and `vlmphys detect` through the command's own main: verdicts, refusals, pages, long videos, watched folders, restarts."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clip_files import decode_all, encode_clip, make_videos
from launching import load_script

from vlmphys import cli

pytestmark = pytest.mark.integration
SIZE = {"height": 32, "width": 32, "frames": 8, "rule": "official", "fit": "crop", "version": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_folder) -> Path:
    """A run folder as training leaves it, with the weights that it began with."""
    from vlmphys import runs
    from vlmphys.config import TrainConfig
    folder = tmp_path_factory.mktemp("runs") / "mine"
    config = TrainConfig(model=str(tiny_model_folder), out=str(folder), tune="full", variant="multi_turn", engine="plain")
    runs.write_identity(config, {"fingerprint": "d", "model_fingerprint": runs.model_fingerprint(str(tiny_model_folder)), "system": False,
                                 "categories": ["fan", "hinge"], "frame_settings": SIZE}, 1)
    shutil.copytree(tiny_model_folder, folder / "model")
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy that a test may calibrate."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """One clip of each state of two categories, 12 frames each."""
    return make_videos(tmp_path_factory.mktemp("detect") / "videos", {"fan": ("stuck",), "hinge": ("falloff",)}, clips=1)


def anomalous_from(run: Path, threshold: float) -> Path:
    """Give the run a calibration by which clips are anomalous from this score on."""
    from vlmphys.calibration import write_calibration
    from vlmphys.runs import folder_fingerprint
    write_calibration(run, {"temperature": 2.0, "threshold": threshold}, {"model_fingerprint": folder_fingerprint(run / "model")})
    return run


def detect(run: Path, *arguments: object) -> int:
    return cli.main(["detect", "--run", str(run), "--device", "cpu", *map(str, arguments)])


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def predict(monkeypatch, repository: Path, *arguments: object) -> int:
    monkeypatch.chdir(repository)
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    return load_script(repository / "launch" / "predict.py").main()


def test_predictions_take_probability_and_verdict_from_the_calibration_and_scores_stay_raw(run, packed_folder, repository, monkeypatch, tmp_path,
                                                                                           capsys):
    common = ("--run", run, "--data", packed_folder, "--explain", "none")
    raw, after = tmp_path / "raw.jsonl", tmp_path / "after.jsonl"
    assert predict(monkeypatch, repository, *common, "--out", raw) == 0
    capsys.readouterr()
    assert cli.main(["calibrate", "--run", str(run), "--data", str(packed_folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    stored = json.loads((run / "calibration.json").read_text())
    assert (stored["fitted_on"]["clips"], stored["fitted_on"]["protocol"], stored["fitted_on"]["split"]) == (4, "weak", "val")
    assert "few val clips (2 normal, 2 anomalous)" in " ".join(facts["notes"])
    assert predict(monkeypatch, repository, *common, "--out", after) == 0
    for before, row in zip(lines(raw.read_text()), lines(after.read_text())):
        assert row["score"] == before["score"] and row["verdict"] == ("anomalous" if row["score"] >= facts["threshold"] else "normal")
        assert row["probability"] == pytest.approx(1 / (1 + np.exp(-row["score"] / facts["temperature"])))
    capsys.readouterr()
    assert predict(monkeypatch, repository, *common, "--out", raw) == 2 and "another calibration" in capsys.readouterr().err
    assert predict(monkeypatch, repository, *common, "--out", raw, "--no-calibration") == 0
    assert predict(monkeypatch, repository, "--run", anomalous_from(run, 0.01), *common[2:], "--out", tmp_path / "given.jsonl") == 0
    for row in lines((tmp_path / "given.jsonl").read_text()):
        assert row["probability"] == pytest.approx(1 / (1 + np.exp(-row["score"] / 2))) and (row["verdict"] == "anomalous") == (row["score"] >= 0.01)
    # The rows of the val split in a file do as well, those of the test split are refused.
    val = tmp_path / "val.jsonl"
    assert predict(monkeypatch, repository, *common, "--no-calibration", "--split", "val", "--out", val) == 0
    capsys.readouterr()
    again = ["calibrate", "--run", str(run), "--data", str(packed_folder), "--json", "--target-fpr", "0.05", "--predictions"]
    assert cli.main([*again, str(val)]) == 0
    short = json.loads(capsys.readouterr().out)
    assert short["temperature"] == facts["temperature"] and "0.333 is promised, not 0.05: 2 normal val clips are too few" in short["notes"][0]
    assert cli.main([*again, str(raw)]) == 2 and "14 clips not of the val split" in capsys.readouterr().err


def test_a_run_whose_weights_have_changed_is_refused(run, videos, capsys):
    from safetensors.torch import load_file, save_file
    anomalous_from(run, 0)
    weights = load_file(run / "model" / "model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, run / "model" / "model.safetensors", {"format": "pt"})
    assert detect(run, videos / "fan/train/0000.mp4", "--category", "fan") == 2
    assert "fitted to other weights" in capsys.readouterr().err


def test_one_clip_has_predicts_score_and_its_status(run, tiny_model_folder, videos, repository, monkeypatch, tmp_path, capsys):
    from vlmphys import Detector
    packed = tmp_path / "packed"
    split = {"version": 1, "protocol": "weak", "seed": 0, "options": {},
             "clips": {path.relative_to(videos).with_suffix("").as_posix(): "test" for path in sorted(videos.rglob("*.mp4"))}}
    (tmp_path / "split.json").write_text(json.dumps(split))
    monkeypatch.chdir(repository)
    monkeypatch.setattr(sys, "argv", ["pack", "--videos", str(videos), "--split", str(tmp_path / "split.json"), "--model", str(tiny_model_folder),
                                      "--out", str(packed), "--workers", "0"])
    assert load_script(repository / "data_prep" / "pack.py").main() == 0
    assert predict(monkeypatch, repository, "--run", run, "--data", packed, "--out", tmp_path / "p.jsonl", "--max-new-tokens", 8) == 0
    rows = {row["clip_id"]: row for row in lines((tmp_path / "p.jsonl").read_text())}
    detector = Detector(run, device="cpu")
    for clip_id, row in rows.items():
        found = detector.detect(videos / f"{clip_id}.mp4", category=row["category"], explain="none")
        assert found.score == pytest.approx(row["score"], abs=1e-4) and found.probability == pytest.approx(row["probability"], abs=1e-4)
        assert found.verdict == row["verdict"] and found.reason is None and len(found.seconds) == 8 and found.frames[-1] == 11
    assert len(rows) == 6
    clip = videos / "fan/test/stuck/0000.mp4"
    for threshold, status, verdict in ((-1e3, 3, "anomalous"), (1e3, 0, "normal")):
        capsys.readouterr()
        assert detect(anomalous_from(run, threshold), clip, "--category", "fan") == status
        out = capsys.readouterr().out
        assert verdict in out and "reason:" in out and "frames seen: 0, 1, 3, 4, 6, 7, 9, 11 (0.00 to 0.18 s)" in out
        assert f"(anomalous from {0 if threshold < 0 else 1:.3f})" in out


def test_a_folder_a_list_and_what_cannot_be_judged(run, videos, tmp_path, capsys, monkeypatch):
    anomalous_from(run, 1e3)
    assert detect(run, videos / "fan", "--category", "fan", "--json", "--explain", "none") == 0
    assert [Path(row["source"]).parent.name for row in lines(capsys.readouterr().out)] == ["anomaly_free", "stuck", "train"]
    hostile = Path(shutil.copy(videos / "fan/train/0000.mp4", tmp_path / "<script>alert(1)<\x1b>.mp4"))
    text, cut = tmp_path / "text.mp4", tmp_path / "cut.mp4"
    unheard = ("nul\0.mp4", "long" * 100 + ".mp4", "latin\udcff.mp4")
    text.write_text("no video\n")
    cut.write_bytes(hostile.read_bytes()[:900])
    given = "\n".join(map(str, (*unheard, hostile, text, cut, tmp_path / "none.mp4"))) + "\n\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode(errors="surrogateescape")), encoding="utf-8"))
    assert detect(run, "-", "--category", "auto", "--json", "--html", tmp_path / "page.html") == 2
    captured = capsys.readouterr()
    refused, found = lines(captured.out)[:3], lines(captured.out)[3:]
    assert [row["source"] for row in refused] == list(unheard) and all("cannot be opened" in row["error"] for row in refused)
    assert found[0]["category"] in ("fan", "hinge") and 0.5 <= found[0]["category_probability"] <= 1 and found[0]["reason"]
    assert [("error" in row) for row in found] == [False, True, True, True] and "No such file" in found[3]["error"]
    assert captured.err.count("error: ") == 6 and "Traceback" not in captured.err
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert" in page and "<script>alert" not in page and page.count("data:image/jpeg;base64,") == 1
    assert page.count(">not judged<") == 6 and "7 clips: 1 normal, 6 not judged" in page and "http" not in page.replace("http-equiv", "")
    assert detect(run, hostile, "--category", "fan") == 0 and "\x1b<" not in capsys.readouterr().out
    for nothing in (io.StringIO("\n"), None):
        monkeypatch.setattr(sys, "stdin", nothing)
        assert detect(run, "-", "--category", "fan", "--html", tmp_path / "none.html") == 2
        assert "no path came on standard input" in capsys.readouterr().err and not (tmp_path / "none.html").exists()


def test_a_folder_of_pictures_is_one_clip_and_a_link_leads_nowhere_twice(run, tmp_path, capsys):
    from PIL import Image
    clip = encode_clip(tmp_path / "clips/a.mp4", frames=12, height=48, width=64)
    (tmp_path / "clips/again").symlink_to(".")
    (tmp_path / "frames").mkdir()
    for number, picture in enumerate(decode_all(clip)):
        Image.fromarray(picture).save(tmp_path / f"frames/frame_{number:04d}.png")
    common = ("--category", "fan", "--json", "--explain", "none")
    assert detect(anomalous_from(run, 1e3), tmp_path / "clips", *common) == 0
    [filmed] = lines(capsys.readouterr().out)
    assert detect(run, tmp_path / "frames", *common) == 0
    [row] = lines(capsys.readouterr().out)
    assert row["score"] == filmed["score"] and row["frames"] == filmed["frames"] and row["seconds"] == [None] * 8


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["none.mp4", "--category", "fan"], "no such file or folder"), ([".", "--category", "fan"], "holds no clip"),
    ([], "FILEs, FOLDERs or -"), (["-", "a"], "give no FILE or FOLDER beside it"),
    (["a", "--watch", "b"], "and not both"), (["a", "--stride", "2s"], "--stride needs --window"),
    (["a", "--window", "soon"], "no length of time"), (["a", "--state", "b"], "belong to --watch"), (["a", "--window", "0s"], "more than 0")])
def test_options_that_cannot_work_are_one_sentence(run, tmp_path, monkeypatch, capsys, arguments, sentence):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert detect(run, *(arguments if "--category" in arguments else [*arguments, "--category", "fan"])) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_missing_run_and_a_category_without_a_prior_are_one_sentence(run, videos, tmp_path, capsys):
    clip = videos / "fan/train/0000.mp4"
    assert detect(tmp_path / "nowhere", clip, "--category", "fan") == 2 and "is no run folder" in capsys.readouterr().err
    assert detect(run, clip, "--category", "fam") == 2 and "did you mean 'fan'" in capsys.readouterr().err
    (run / "metrics.jsonl").write_text('{"verdict_loss": 0.7}\n')
    assert detect(anomalous_from(run, 1e3), clip, "--category", "gear", "--explain", "none") == 0
    said = capsys.readouterr().err
    assert "not trained on 'gear', only on fan, hinge" in said and "ended with a verdict near chance (verdict_loss 0.70" in said


def test_two_files_are_judged_and_a_journal_of_another_calibration_is_said(run, videos, tmp_path, capsys):
    clips = sorted(videos.glob("fan/test/*/*.mp4"))
    assert len(clips) == 2
    common = ("--category", "fan", "--json", "--explain", "none")
    assert detect(anomalous_from(run, 1e3), *clips, *common) == 0
    assert [row["source"] for row in lines(capsys.readouterr().out)] == list(map(str, clips))
    watched = ("--watch", videos / "fan", "--state", tmp_path / "state.jsonl", "--settle", "0s", "--until-idle", "10ms", *common)
    assert detect(anomalous_from(run, 2.0), *watched) in (0, 3) and "were judged anomalous from" not in capsys.readouterr().err
    assert detect(run, *watched) == 0 and "were judged anomalous from" not in capsys.readouterr().err
    assert detect(anomalous_from(run, 4.0), *watched) == 0
    assert "were judged anomalous from probability 0.731, new ones are from 0.881: the run was calibrated meanwhile" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "sentence"), [
    ({"dtype": "int8"}, "--dtype int8: auto, fp32, bf16, 4bit are allowed"), ({"device": "tpu"}, "--device tpu: auto, cpu, cuda are allowed"),
    ({"dtype": "4bit"}, "--dtype 4bit needs a CUDA GPU")])
def test_a_detector_on_what_is_not_there_is_refused(run, options, sentence):
    from vlmphys import Detector
    with pytest.raises(ValueError, match=sentence):
        Detector(run, **{"device": "cpu", **options})


def test_a_detector_refuses_another_word_and_goes_on_where_memory_does_not_do_for_all_windows(run, tmp_path, monkeypatch):
    import torch

    import vlmphys.detector
    from vlmphys import Detector
    clip = encode_clip(tmp_path / "a.mp4", frames=60, height=48, width=64, rate=5)
    detector, real, sizes = Detector(run, device="cpu"), vlmphys.detector.judge_batch, []
    with pytest.raises(ValueError, match="explain='some': all, anomalous, none are allowed"):
        detector.detect(clip, "fan", explain="some")
    with pytest.raises(ValueError, match=r"category=None: .*\(fan, hinge in training\), or 'auto'"):
        detector.detect(clip, None)
    whole = detector.detect_windows(clip, "fan", 4, 2, explain="none")

    def judge(network, facts, prompts, *more, **options):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(network, facts, prompts, *more, **options)
    monkeypatch.setattr(vlmphys.detector, "judge_batch", judge)
    found = detector.detect_windows(clip, "fan", 4, 2, explain="none")
    assert [moment.score for moment in found.timeline] == pytest.approx([moment.score for moment in whole.timeline], abs=1e-4)
    assert sizes == [5, 2, 2, 1]


def test_a_reader_that_has_gone_ends_it_in_silence(run, videos, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert detect(run, videos / "fan", "--category", "fan", "--json", "--explain", "none") == 141
    assert not capsys.readouterr().err


def command(repository: Path, run: Path, *arguments: object, **settings) -> subprocess.Popen:
    """The command in a process of its own, which takes Ctrl-C as one in a terminal does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen([sys.executable, "-m", "vlmphys.cli", "detect", "--run", str(run), "--device", "cpu", *map(str, arguments)],
                            cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": str(repository)}, **settings)


def test_statuses_a_second_watcher_and_a_stop_through_the_command_itself(run, videos, repository, tmp_path):
    normal, faulty = anomalous_from(run, 1e3), anomalous_from(Path(shutil.copytree(run, tmp_path / "faulty")), -1e3)
    folder, text = tmp_path / "line", tmp_path / "text.mp4"
    text.write_text("no video\n")
    folder.mkdir()
    common = ("--category", "fan", "--explain", "none")
    one = command(repository, normal, videos / "fan/train/0000.mp4", *common)
    out, err = one.communicate(timeout=300)
    assert one.returncode == 0 and "normal" in out and not err
    two = command(repository, faulty, "-", *common, "--json", stdin=subprocess.PIPE)
    out, err = two.communicate(f"{videos / 'fan/train/0000.mp4'}\n", timeout=300)
    assert two.returncode == 3 and json.loads(out)["verdict"] == "anomalous" and not err
    three = command(repository, faulty, text, *common)
    out, err = three.communicate(timeout=300)
    assert three.returncode == 2 and not out and "cannot be read as a video" in err.splitlines()[-1] and "Traceback" not in err
    watcher = command(repository, normal, "--watch", folder, *common)
    assert "Ctrl-C ends it" in watcher.stderr.readline()
    second = command(repository, normal, "--watch", folder, *common)
    out, err = second.communicate(timeout=300)
    assert second.returncode == 2 and "another process watches with this journal" in err and err.count("\n") == 1
    watcher.send_signal(signal.SIGINT)
    out, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 130 and err == "stopped\n"


def test_the_documented_python_runs(run, repository, tmp_path, monkeypatch, capsys):
    text = (repository / "launch/README.md").read_text()
    [example] = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs/NAME")
    encode_clip(tmp_path / "CLIP.mp4", frames=12, height=48, width=64)
    encode_clip(tmp_path / "LONG.mp4", frames=60, height=48, width=64, rate=5)
    (tmp_path / "TEXT.mp4").write_text("no video\n")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "launch/README.md", "exec"), {})
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith("fan CLIP.mp4 (0, 1, 3, 4, 6, 7, 9, 11)") and out[1].endswith("(8, 32, 32, 3)")
    assert [line.split()[:2] for line in out[2:-1]] == [[f"{2.0 * start}", f"{2.0 * start + 4}"] for start in range(5)]
    assert "cannot be read as a video" in out[-1]


def test_a_video_of_two_minutes_has_a_timeline(run, tmp_path, capsys):
    clip = encode_clip(tmp_path / "long.mp4", frames=600, height=48, width=64, rate=5)
    page = tmp_path / "page.html"
    common = (clip, "--category", "fan", "--window", "4s", "--stride", "2s", "--explain", "none")
    assert detect(anomalous_from(run, 1e3), *common, "--json", "--html", page) == 0
    [row] = lines(capsys.readouterr().out)
    spans = [(moment["start_seconds"], moment["stop_seconds"]) for moment in row["timeline"]]
    assert spans == [(2 * number, 2 * number + 4) for number in range(59)]
    best = max(row["timeline"], key=lambda moment: moment["score"])
    assert row["score"] == best["score"] and best["start_seconds"] <= row["seconds"][0] < row["seconds"][-1] < best["stop_seconds"]
    assert page.read_text().count("<rect ") == 59 and f"the highest of 59 windows, {best['start_seconds']:.1f} to" in page.read_text()
    # A window is judged as a clip of these frames alone would be.
    from vlmphys import Detector
    from vlmphys.pixels import fit_frames
    from vlmphys.predictions import Explain
    detector = Detector(run, device="cpu")
    pictures = fit_frames(decode_all(clip)[row["frames"]], 32)
    assert detector._judge("fan", [pictures], Explain.NONE)[0].score == pytest.approx(best["score"], abs=1e-4)


def test_a_watched_folder_over_a_kill_and_a_restart_judges_each_whole_clip_once(run, videos, repository, tmp_path, capsys):
    folder = tmp_path / "line"
    folder.mkdir()
    source = (videos / "fan/train/0000.mp4").read_bytes()
    (folder / "text.mp4").write_text("no video\n")
    (folder / "growing.mp4").write_bytes(source[:700])
    for number in range(12):
        (folder / f"{number:03d}.mp4").write_bytes(source)
    command = ["--category", "fan", "--json", "--explain", "none", "--watch", str(folder), "--settle", "0.3s"]
    journal = folder / "detections.jsonl"
    first = subprocess.Popen([sys.executable, "-m", "vlmphys.cli", "detect", "--run", str(run), "--device", "cpu", *command], cwd=repository,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(repository)})
    begun = time.monotonic()
    while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 3):
        assert first.poll() is None and time.monotonic() - begun < 300
        with open(folder / "growing.mp4", "ab") as stream:      # still being written: its time of change moves on
            stream.write(b"\0")
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (folder / "growing.mp4").write_bytes(source)
    (folder / "late.mp4").write_bytes(source)
    assert detect(run, *command, "--until-idle", "1s") in (0, 2, 3)
    rows = lines(journal.read_text())
    names = [row["clip"] for row in rows]
    assert sorted(names) == sorted([*(f"{number:03d}.mp4" for number in range(12)), "growing.mp4", "late.mp4", "text.mp4"])
    assert [row["clip"] for row in rows if "error" in row] == ["text.mp4"] and len({row.get("score") for row in rows}) == 2
    capsys.readouterr()
    assert detect(run, *command, "--until-idle", "0.5s") == 0 and capsys.readouterr().out == "", "a third start finds nothing new"
