"""launch/predict.py and launch/score.py through their commands: rows, resume, refusals, and a scorer without torch."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launching import load_script

pytestmark = pytest.mark.integration

TEST_CLIPS = 14
NO_TORCH = """
import runpy, sys
try:
    runpy.run_path("launch/score.py", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
heavy = sorted({"torch", "transformers", "deepspeed", "peft", "sklearn"} & set(sys.modules))
assert not heavy, f"the scorer imported {heavy}"
"""


def run(repository: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=repository, capture_output=True, text=True, timeout=600,
                          env={**os.environ, "COLUMNS": "160"})
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def call(monkeypatch, repository: Path, script: str, *arguments: object) -> int:
    """The command's own main, in this process: starting torch anew for every refusal would take minutes."""
    module = load_script(repository / "launch" / f"{script}.py")
    monkeypatch.chdir(repository)
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    return module.main()


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def predicted(tmp_path_factory, repository, tiny_model_folder, packed_folder) -> Path:
    """The untrained model's rows for the test clips, by the real command."""
    out = tmp_path_factory.mktemp("predicted") / "deep" / "predictions.jsonl"
    run(repository, "launch/predict.py", "--model", tiny_model_folder, "--variant", "multi_turn", "--data", packed_folder,
        "--split", "test", "--out", out, "--max-new-tokens", 12)
    return out


def test_every_test_clip_has_a_whole_row(predicted, packed_folder):
    from vlmphys.records import Split
    from vlmphys.shards import open_packed
    packed = open_packed(packed_folder)
    rows = rows_of(predicted)
    assert [row["clip_id"] for row in rows] == packed.clip_ids(Split.TEST) and len(rows) == TEST_CLIPS
    assert {row["label"] for row in rows} == {0, 1} and len({row["score"] for row in rows}) > 1
    for row in rows:
        assert row["data_fingerprint"] == packed.fingerprint and (row["variant"], row["grounding"]) == ("multi_turn", "prior")
        assert row["verdict"] == ("anomalous" if row["score"] >= 0 else "normal")
        assert row["probability"] == pytest.approx(1 / (1 + np.exp(-row["score"])))
        assert len(row["answers"]) == 4 and row["answers"][3].startswith(f"Verdict: {row['verdict'].capitalize()}")
        assert row["explanation"] and row["explanation"] in row["answers"][3]


def test_the_given_answers_are_the_priors(predicted):
    from vlmphys.priors import load_prior
    for row in rows_of(predicted):
        prior = load_prior(row["category"])
        assert row["answers"][:3] == [prior.component, prior.dynamic, prior.motion]


def test_batches_of_one_give_the_same_rows(monkeypatch, repository, tmp_path, predicted, tiny_model_folder, packed_folder):
    out = tmp_path / "one.jsonl"
    assert call(monkeypatch, repository, "predict", "--model", tiny_model_folder, "--variant", "multi_turn", "--data", packed_folder,
                "--out", out, "--max-new-tokens", 12, "--batch-size", 1) == 0
    for one, many in zip(rows_of(out), rows_of(predicted), strict=True):
        assert one["score"] == pytest.approx(many["score"], abs=1e-4) and one["probability"] == pytest.approx(many["probability"], abs=1e-4)
        assert {key: value for key, value in one.items() if key not in ("score", "probability")} == \
            {key: value for key, value in many.items() if key not in ("score", "probability")}


def test_an_interrupted_run_goes_on_and_a_finished_one_changes_nothing(monkeypatch, repository, tmp_path, predicted, tiny_model_folder,
                                                                        packed_folder):
    out = tmp_path / "resumed.jsonl"
    whole = predicted.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    command = ["--model", tiny_model_folder, "--variant", "multi_turn", "--data", packed_folder, "--out", out, "--max-new-tokens", 12]
    assert call(monkeypatch, repository, "predict", *command) == 0
    assert out.read_bytes().startswith(b"".join(lines[:5])), "rows that stood there are kept as they were"
    assert [row["clip_id"] for row in rows_of(out)] == [row["clip_id"] for row in rows_of(predicted)]
    before = out.read_bytes()
    monkeypatch.setattr("vlmphys.predict.load_model", lambda *_: pytest.fail("nothing is left to predict: the weights are not needed"))
    assert call(monkeypatch, repository, "predict", *command) == 0
    assert out.read_bytes() == before


@pytest.mark.parametrize("variant, answers, grounding", [("single_turn", 1, "prior"), ("no_physics", 1, "none")])
def test_the_other_variants(monkeypatch, repository, tmp_path, tiny_model_folder, packed_folder, variant, answers, grounding):
    out = tmp_path / f"{variant}.jsonl"
    assert call(monkeypatch, repository, "predict", "--model", tiny_model_folder, "--variant", variant, "--data", packed_folder,
                "--out", out, "--explain", "none", "--max-clips", 4) == 0
    rows = rows_of(out)
    assert len(rows) == 4 and {row["category"] for row in rows} == {"fan", "hinge"}
    for row in rows:
        assert row["explanation"] is None and row["grounding"] == grounding and len(row["answers"]) == answers
        assert row["answers"][0].endswith(f"Verdict: {row['verdict'].capitalize()}")
        assert (row["answers"][0] == f"Verdict: {row['verdict'].capitalize()}") == (variant == "no_physics")


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_tuned_run_is_predicted(monkeypatch, repository, tmp_path, tiny_model_folder, packed_folder, predicted, capsys, tune):
    folder, out = tmp_path / "tuned", tmp_path / "tuned" / "predictions.jsonl"
    run(repository, "launch/train.py", "--data", packed_folder, "--model", tiny_model_folder, "--variant", "multi_turn", "--out", folder,
        "--set", "engine=plain", "max_steps=3", "learning_rate=0.05", "per_device_train_batch_size=4", f"tune={tune}")
    command = ["--run", folder, "--data", packed_folder, "--out", out, "--max-new-tokens", 4]
    assert call(monkeypatch, repository, "predict", *command) == 0
    rows = rows_of(out)
    assert len(rows) == TEST_CLIPS and rows[0]["model"].startswith("tuned@")
    moved = [abs(new["score"] - old["score"]) for new, old in zip(rows, rows_of(predicted))]
    assert max(moved) > 1e-3, "the tuned weights must be those in use"
    capsys.readouterr()
    assert call(monkeypatch, repository, "predict", *command, "--variant", "no_physics") == 2
    assert "was trained on multi_turn" in capsys.readouterr().err
    assert call(monkeypatch, repository, "score", "--predictions", out, "--out", tmp_path / "scores") == 0
    assert "Training loss by turn" in (tmp_path / "scores" / "report.html").read_text()


def refusals(tmp_path: Path, model: Path, packed: Path, predicted: Path) -> dict[str, tuple[list, str]]:
    """Bad command lines of predict.py with a part of the one sentence that each must give."""
    foreign = tmp_path / "foreign"
    shutil.copytree(model, foreign)
    (foreign / "config.json").write_text(json.dumps({"model_type": "llama"}))
    other_words = tmp_path / "other_words"
    shutil.copytree(model, other_words)
    tokenizer = json.loads((other_words / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (other_words / "tokenizer.json").write_text(json.dumps(tokenizer))
    no_train = tmp_path / "empty_side"
    shutil.copytree(packed, no_train)
    split = json.loads((no_train / "split.json").read_text())
    split["clips"] = {clip_id: "train" if side == "val" else side for clip_id, side in split["clips"].items()}
    (no_train / "split.json").write_text(json.dumps(split))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("variant: multi_turn\n")
    given, data = ["--model", model, "--variant", "multi_turn"], ["--data", packed]
    return {
        "no model": (data, "give --run FOLDER for a tuned model, or --model"),
        "no variant": (["--model", model, *data], "--model needs --variant"),
        "no such run": (["--run", tmp_path / "none", *data], "is no run folder"),
        "unfinished run": (["--run", unfinished, *data], "has no model yet"),
        "no such data": ([*given, "--data", tmp_path / "none"], "no such folder"),
        "no such model": (["--model", tmp_path / "none", "--variant", "multi_turn", *data], "is no folder"),
        "not Video-LLaVA": (["--model", foreign, "--variant", "multi_turn", *data], "only Video-LLaVA"),
        "another tokenizer": (["--model", other_words, "--variant", "multi_turn", *data], "tokenizer_sha256"),
        "empty side": ([*given, "--data", no_train, "--split", "val"], "holds no packed clip on the side 'val'"),
        "batch of none": ([*given, *data, "--batch-size", 0], "must be at least 1"),
        "no clips asked for": ([*given, *data, "--max-clips", 0], "at least 1 is needed"),
        "another variant's file": (["--model", model, "--variant", "no_physics", *data, "--out", predicted],
                                   "was predicted with variant 'multi_turn'"),
        "another side's file": ([*given, *data, "--split", "train", "--out", predicted], "is not on the side that --split asks for"),
    }


def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(monkeypatch, repository, tmp_path, tiny_model_folder, packed_folder,
                                                                     predicted, capsys):
    before = predicted.read_bytes()
    for name, (arguments, message) in refusals(tmp_path, tiny_model_folder, packed_folder, predicted).items():
        out = tmp_path / "out" / "predictions.jsonl"
        target = [] if "--out" in arguments else ["--out", out]
        assert call(monkeypatch, repository, "predict", *arguments, *target) == 2, name
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and message in error, f"{name}: {error}"
        assert not out.parent.exists(), name
    assert predicted.read_bytes() == before


@pytest.mark.parametrize(("name", "text", "message"), [("RANK", "one", "rank one: error: RANK is 'one'"), ("WORLD_SIZE", "-1", "WORLD_SIZE is '-1'")])
def test_what_a_launcher_did_not_set_is_refused(monkeypatch, repository, tmp_path, tiny_model_folder, packed_folder, capsys, name, text, message):
    monkeypatch.setenv(name, text)
    assert call(monkeypatch, repository, "predict", "--model", tiny_model_folder, "--variant", "multi_turn", "--data", packed_folder,
                "--out", tmp_path / "p.jsonl") == 2
    assert message in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_sentence(monkeypatch, repository, tmp_path, tiny_model_folder, packed_folder, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("vlmphys.prediction_files.PredictionWriter.append", full)
    assert call(monkeypatch, repository, "predict", "--model", tiny_model_folder, "--variant", "no_physics", "--data", packed_folder,
                "--out", tmp_path / "p.jsonl", "--explain", "none") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "No space left" in error and "the same command again" in error


def test_score_writes_its_files_without_torch(repository, tmp_path, predicted, packed_folder):
    out = tmp_path / "scores"
    done = run(repository, "-c", NO_TORCH, "--predictions", predicted, "--data", packed_folder, "--out", out)
    assert "mean of 2" in done.stdout and str(out / "report.html") in done.stdout.replace("\n", "")
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "scores.json", "table.csv", "table.md", "table.tex"]
    scores = json.loads((out / "scores.json").read_text())
    assert scores["protocol"] == "weak" and set(scores["per_category"]) == {"fan", "hinge"} and scores["average_21"]["auroc"] is None
    assert scores["fingerprints"]["split"] and scores["fingerprints"]["data"] == rows_of(predicted)[0]["data_fingerprint"]
    assert not [warning for warning in scores["warnings"] if "split" in warning]
    page = (out / "report.html").read_text()
    assert page.count('<img class="strip"') == page.count("<article") > 3 and "Reference: Verdict:" in page


def test_score_refuses_data_that_the_rows_were_not_predicted_on(monkeypatch, repository, tmp_path, predicted, packed_folder, capsys):
    other, out = tmp_path / "other.jsonl", tmp_path / "scores"
    rows = rows_of(predicted)
    rows[-1]["data_fingerprint"] = "0" * 64
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call(monkeypatch, repository, "score", "--predictions", predicted, other, "--data", packed_folder, "--out", out) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {other} was predicted on other packed data (fingerprint 000000000000)") and "\n" not in error
    assert not out.exists()
    assert call(monkeypatch, repository, "score", "--predictions", other, "--out", out) == 0, "without --data there is nothing to compare"


def test_score_puts_several_files_side_by_side(repository, tmp_path, predicted):
    out = tmp_path / "scores"
    done = run(repository, "launch/score.py", "--predictions", f"base={predicted}", f"again={predicted}", "--out", out)
    assert "base" in done.stdout and "again" in done.stdout
    runs = json.loads((out / "scores.json").read_text())["runs"]
    assert list(runs) == ["base", "again"] and runs["base"] == runs["again"]


def test_score_compares_each_run_with_the_first(monkeypatch, repository, tmp_path, predicted, capsys):
    files = {variant: tmp_path / variant / "predictions.jsonl" for variant in ("no_physics", "single_turn", "multi_turn")}
    for place, (variant, path) in enumerate(files.items()):
        path.parent.mkdir()
        path.write_text("".join(json.dumps({**row, "variant": variant, "score": row["score"] + place * row["label"]}) + "\n"
                                for row in rows_of(predicted)))
    out = tmp_path / "scores"
    assert call(monkeypatch, repository, "score", "--compare", *files.values(), "--out", out) == 0
    printed = capsys.readouterr().out
    assert "Compared with no_physics: AUROC of the score" in printed and "multi_turn − no_physics [95 %]" in printed
    assert "The ablation beside the paper's" in printed and "no_physics, paper" in printed and "multi_turn 0.9" in printed
    document = json.loads((out / "scores.json").read_text())
    assert list(document["runs"]) == list(files) and document["comparison"]["base"] == "no_physics"
    mean = document["comparison"]["against"]["multi_turn"]["auroc"]["mean"]
    assert mean["n_categories"] == 2 and mean["difference"] >= 0 and document["published"]["shared_categories"] == ["fan", "hinge"]
    cell = f"{mean['difference']:+.3f} [{mean['difference_ci95'][0]:+.3f}, {mean['difference_ci95'][1]:+.3f}]"
    for name in ("table.md", "table.tex", "report.html"):
        assert cell in (out / name).read_text(), name
    assert "multi\\_turn $-$ no\\_physics" in (out / "table.tex").read_text() and "Ours, multi-turn paper" in (out / "report.html").read_text()
    bare = tmp_path / "bare"
    capsys.readouterr()
    assert call(monkeypatch, repository, "score", "--compare", *files.values(), "--out", bare, "--no-published") == 0
    assert "paper" not in capsys.readouterr().out and "published" not in json.loads((bare / "scores.json").read_text())
    for name in ("table.md", "table.tex", "report.html"):
        assert "Phys-AD" not in (bare / name).read_text(), name
    assert call(monkeypatch, repository, "score", "--compare", f"x={files['multi_turn']}", files["no_physics"], "--out", tmp_path / "named") == 0
    assert list(json.loads((tmp_path / "named/scores.json").read_text())["runs"])[0] == "x", "a name that was given stays"
    capsys.readouterr()
    assert call(monkeypatch, repository, "score", "--compare", files["multi_turn"], "--out", tmp_path / "alone") == 2
    assert "--compare needs two files or more" in capsys.readouterr().err


def test_score_reads_llama_factorys_file_by_the_order_of_the_labels(monkeypatch, repository, tmp_path, capsys):
    answers = {"fan/test/stuck/1": "Verdict: Anomalous. Reason: it stands.", "fan/test/anomaly_free/1": "Normal."}
    texts, labels = tmp_path / "generated_predictions.jsonl", tmp_path / "labels.csv"
    texts.write_text("".join(json.dumps({"prompt": "", "predict": text, "label": ""}) + "\n" for text in answers.values()))
    labels.write_text("clip_id,label\n" + "".join(f"{clip},{int('stuck' in clip)}\n" for clip in answers))
    assert call(monkeypatch, repository, "score", "--predictions", texts, "--labels", labels, "--out", tmp_path / "out") == 0
    fan = json.loads((tmp_path / "out/scores.json").read_text())["per_category"]["fan"]
    assert fan["auroc_verdict"] == fan["tpr"] == 1 and fan["fpr"] == 0 and fan["auroc"] is None
    assert call(monkeypatch, repository, "score", "--predictions", texts, "--out", tmp_path / "none") == 2
    assert "names no clip: give --labels" in capsys.readouterr().err


def test_score_leaves_other_files_and_the_scores_of_others_alone(monkeypatch, repository, tmp_path, capsys):
    one, two, out = tmp_path / "one.csv", tmp_path / "two.csv", tmp_path / "scores"
    for table in (one, two):
        table.write_text("clip_id,label,score\nfan/1,1,0.5\nfan/2,0,0.1\n")
    for _ in range(2):
        assert call(monkeypatch, repository, "score", "--predictions", one, "--out", out) == 0, "its own results are written again"
    assert json.loads((out / "scores.json").read_text())["predictions_file"] == "../one.csv"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    for given in ([two], [one, two]):
        assert call(monkeypatch, repository, "score", "--predictions", *given, "--out", out) == 2
        error = capsys.readouterr().err.strip()
        assert error == f"error: --out {out} holds the scores of other predictions ({one}): give another --out, or --overwrite"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (one, out):
        path.rename(moved / path.name)
    assert call(monkeypatch, repository, "score", "--predictions", moved / "one.csv", "--out", moved / "scores") == 0
    assert call(monkeypatch, repository, "score", "--predictions", two, "--out", moved / "scores", "--overwrite") == 0
    assert json.loads((moved / "scores/scores.json").read_text())["predictions_file"] == "../../two.csv"
    assert call(monkeypatch, repository, "score", "--predictions", moved / "one.csv", "--out", moved) == 2
    assert "holds one.csv and 1 more, which score.py did not write: give another --out" in capsys.readouterr().err
    assert call(monkeypatch, repository, "score", "--predictions", moved / "one.csv", "--out", moved, "--overwrite") == 0
    assert (moved / "one.csv").exists() and (moved / "table.md").exists()


def test_score_compares_the_clips_of_several_runs(monkeypatch, repository, tmp_path, capsys):
    one, two, out = tmp_path / "one.csv", tmp_path / "two.csv", tmp_path / "scores"
    one.write_text("clip_id,label,score\nfan/1,1,0.5\nfan/2,0,0.1\n")
    two.write_text("clip_id,label,score\nfan/1,0,0.5\nfan/2,0,0.1\n")
    assert call(monkeypatch, repository, "score", "--predictions", one, two, "--out", out) == 2
    assert f"clip 'fan/1' has label 1 in {one} and 0 in {two}" in capsys.readouterr().err and not out.exists()
    two.write_text("clip_id,label,score\nfan/1,1,0.5\nfan/3,0,0.1\n")
    assert call(monkeypatch, repository, "score", "--predictions", one, two, "--out", out) == 0
    sentence = "1 of 3 clips are in all of them (one 2, two 2;"
    assert sentence in " ".join(capsys.readouterr().out.split()) and sentence in (out / "table.md").read_text()
    assert (out / "report.html").read_text().count(sentence) == 1
    document = json.loads((out / "scores.json").read_text())
    assert document["n_common"] == 1 and all(sentence in run["warnings"][-1] for run in document["runs"].values())


def test_score_takes_labels_and_the_quarantine_from_the_packed_data(monkeypatch, repository, tmp_path, predicted, packed_folder):
    packed, bare = tmp_path / "packed", tmp_path / "bare.csv"
    shutil.copytree(packed_folder, packed)
    rows = rows_of(predicted)
    split = json.loads((packed / "split.json").read_text())
    split["clips"]["fan/test/stuck/broken"] = "test"
    (packed / "split.json").write_text(json.dumps(split))
    (packed / "frames/quarantine.jsonl").write_text('{"clip_id": "fan/test/stuck/broken", "path": "x.mp4", "reason": "cut"}\n')
    bare.write_text("clip_id,score\n" + "".join(f"{row['clip_id']},{row['score']}\n" for row in rows[1:]))
    assert call(monkeypatch, repository, "score", "--predictions", bare, "--data", packed, "--out", tmp_path / "out") == 0
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["n"] == TEST_CLIPS - 1 and scores["n_anomalous"] == sum(row["label"] for row in rows[1:])
    said = f"1 of {TEST_CLIPS + 1} test clips could not be read and is not scored (first fan/test/stuck/broken; "
    assert any(warning.startswith(said) for warning in scores["warnings"]) and "1 test clip has no prediction" in scores["warnings"]
    assert said in (tmp_path / "out/table.md").read_text() and said in (tmp_path / "out/report.html").read_text()


def test_score_reads_a_bare_csv_and_labels_from_elsewhere(repository, tmp_path):
    table, labels = tmp_path / "scores.csv", tmp_path / "labels.csv"
    table.write_text("clip_id,score\n" + "".join(f"fan/{number},{number / 10}\n" for number in range(10)))
    labels.write_text("clip_id,label\n" + "".join(f"fan/{number},{int(number > 4)}\n" for number in range(10)))
    run(repository, "launch/score.py", "--predictions", table, "--labels", labels, "--out", tmp_path / "out")
    fan = json.loads((tmp_path / "out" / "scores.json").read_text())["per_category"]["fan"]
    assert fan["auroc"] == fan["ap"] == fan["accuracy"] == 1.0


def test_the_readmes_csv_is_scored_by_the_readmes_command(monkeypatch, repository, tmp_path):
    section = (repository / "launch/README.md").read_text().partition("## Scoring")[2]
    command, rows = (block.strip() for block in section.split("```")[1:4:2])
    words = command.partition("#")[0].split()
    assert words[:2] == ["python", "launch/score.py"] and rows.startswith("clip_id,label,score\n")
    (tmp_path / "my_scores.csv").write_text(rows + "\n")
    given = [str(tmp_path / word) if word in ("my_scores.csv", "scores") else word for word in words[2:]]
    assert call(monkeypatch, repository, "score", *given) == 0
    assert json.loads((tmp_path / "scores/scores.json").read_text())["per_category"]["fan"]["auroc"] == 1.0


def test_score_refuses_bad_input_and_writes_nothing(monkeypatch, repository, tmp_path, capsys):
    good, bare = tmp_path / "good.csv", tmp_path / "bare.csv"
    good.write_text("clip_id,label,score\nfan/1,1,0.5\nfan/2,0,0.1\n")
    bare.write_text("clip_id,score\nfan/1,0.5\n")
    (tmp_path / "file").write_text("")
    for arguments, message in (
            (["--predictions", bare],
             "bare.csv:2: clip 'fan/1' has no label: add a label column (0 normal, 1 anomalous), give --labels FILE, or --data FOLDER"),
            (["--predictions", tmp_path / "none.jsonl"], "none.jsonl: no such file"),
            (["--predictions", good, "--threshold", "nan"], "--threshold nan: a number is needed"),
            (["--predictions", good, good], "are named"),
            (["--predictions", good, "--data", tmp_path / "none"], "none"),
            (["--predictions", good, "--run", tmp_path / "none"], "no such run folder"),
            (["--predictions", good, "--labels", bare], "bare.csv:1: the header has no column label; it has: clip_id, score"),
            (["--predictions", good, "--priors", tmp_path / "none"], "priors folder"),
            (["--predictions", good, "--out", tmp_path / "file"], "is a file")):
        target = [] if "--out" in arguments else ["--out", tmp_path / "out"]
        assert call(monkeypatch, repository, "score", *arguments, *target) == 2, arguments
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and message in error and "\n" not in error, error
        assert not (tmp_path / "out").exists()


def test_a_category_with_one_class_is_null_with_a_reason(monkeypatch, repository, tmp_path):
    table = tmp_path / "one.csv"
    table.write_text("clip_id,label,score\nfan/test/stuck/1,1,0.5\nfan/test/stuck/2,1,0.1\ngear/a/1,0,0.1\ngear/b/1,1,0.4\n")
    assert call(monkeypatch, repository, "score", "--predictions", table, "--out", tmp_path / "out") == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    fan = scores["per_category"]["fan"]
    assert fan["auroc"] is None and "one class only: 2 anomalous and 0 normal" in fan["reasons"]["auroc"]
    assert scores["average"]["auroc"] == 1.0 and scores["average"]["left_out"]["auroc"] == ["fan"]
