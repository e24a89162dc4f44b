"""What is said of a run or a packed folder, and of a command line's slips, before anything heavy is imported."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlmphys import cli
from vlmphys.detect import DetectOptions, paths_of
from vlmphys.finished import chance_note, check_packed, check_run

pytestmark = pytest.mark.unit


@pytest.fixture
def quickstart(tmp_path) -> Path:
    """What a quickstart leaves: the run and the packed data stand one level down."""
    for name in ("multi_turn/config.yaml", "multi_turn/model/config.json", "packed/frames/manifest.json"):
        (tmp_path / "q" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "q" / name).write_text("{}")
    return tmp_path / "q"


def test_a_folder_that_holds_the_run_or_the_data_one_level_down_is_refused_with_that_one(quickstart):
    check_run(quickstart / "multi_turn")
    check_packed(quickstart / "packed")
    with pytest.raises(ValueError, match=f"is no run folder.*did you mean {quickstart}/multi_turn\\?"):
        check_run(quickstart)
    with pytest.raises(ValueError, match=f"is no packed data.*did you mean {quickstart}/packed\\?"):
        check_packed(quickstart)
    (quickstart / "multi_turn/model/config.json").unlink()
    (quickstart / "multi_turn/model").rmdir()
    with pytest.raises(ValueError, match="has no model yet"):
        check_run(quickstart / "multi_turn")


def test_a_verdict_that_was_not_learnt_is_said_again(quickstart):
    run = quickstart / "multi_turn"

    def logged(name: str, **row) -> None:
        (run / name).write_text(json.dumps({"verdict_loss": 0.1, "auroc": 0.1}) + "\n" + json.dumps(row) + "\n")
    assert chance_note(run) is None
    logged("metrics.jsonl", verdict_loss=0.3)
    assert chance_note(run) is None
    logged("evaluations.jsonl", auroc=0.9, verdict_loss=0.8)
    assert chance_note(run) is None, "a validation that ranks well is no chance, however bold its losses"
    logged("evaluations.jsonl", auroc=0.48)
    assert "no better than chance (AUROC 0.480 in its last validation)" in chance_note(run)
    logged("metrics.jsonl", verdict_loss=0.91)
    assert "worse than chance (verdict_loss 0.91" in chance_note(run)
    logged("metrics.jsonl", verdict_loss=0.69)
    assert "near chance (verdict_loss 0.69" in chance_note(run)


@pytest.mark.parametrize(("words", "sentence"), [
    (("detect", "{q}/a.mp4", "--category", "fan", "--run", "{q}"), "no such file or folder"),
    (("detect", "{q}/packed/frames/manifest.json", "--category", "fan", "--run", "{q}/multi_turn"), "vlmphys detect - < "),
    (("detect", "{q}/b.mp4", "{q}/c.mp4", "--category", "fan", "--run", "{q}"), "did you mean {q}/multi_turn?"),
    (("detect", "{q}/b.mp4", "--category", "fam", "--run", "{q}/multi_turn"), "did you mean 'fan'?"),
    (("calibrate", "--data", "{q}", "--run", "{q}/multi_turn"), "did you mean {q}/packed?"),
    (("calibrate", "--data", "{q}/packed", "--run", "{q}/multi_turn", "--target-fpr", "1%"), "0.01 for one in a hundred"),
    (("calibrate", "--data", "{q}/packed", "--run", "{q}/multi_turn", "--predictions", "{q}/none"), "none: no such file")])
def test_a_slip_of_the_hand_is_one_sentence_before_the_imports(quickstart, words, sentence):
    for name in ("b.mp4", "c.mp4"):
        (quickstart / name).write_bytes(b"0")
    check = ("import sys; from vlmphys.cli import main; status = main(sys.argv[1:]); "
             "print(status, [name for name in ('torch', 'transformers') if name in sys.modules])")
    ended = subprocess.run([sys.executable, "-c", check, *(word.format(q=quickstart) for word in words)], capture_output=True, text=True, check=True)
    assert ended.stdout == "2 []\n" and sentence.format(q=quickstart) in ended.stderr and ended.stderr.count("\n") == 1


def test_several_files_are_taken_and_standard_input_stands_alone(tmp_path):
    given = cli.parser().parse_args(["detect", "a.mp4", "b.mp4", "--category", "fan", "--run", "r"])
    assert given.target == ["a.mp4", "b.mp4"]
    DetectOptions(Path("r"), "fan", given.target).check()
    with pytest.raises(ValueError, match="beside it"):
        DetectOptions(Path("r"), "fan", ["-", "b.mp4"]).check()


def test_paths_parted_by_nul_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a.mp4\0b.mp4\0"))
    with pytest.raises(ValueError, match="find -print0.*one path a line is needed"):
        list(paths_of("-"))
