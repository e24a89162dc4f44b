"""Drafting a prior's texts over a real socket: what is taken, what is refused and counted, what is asked again, and what is never written."""

from __future__ import annotations

import json
import re

import pytest
from chat_server import ChatStub
from draft_server import OUTLINE, all_good, asked_list, drafts, reply
from launching import load_script

from vlmphys.draft_checks import DraftChecks, read_drafts, stated_verdict
from vlmphys.prior_lint import lint_priors
from vlmphys.priors import KINDS, PARTS, known_categories, load_priors, read_prior
from vlmphys.prompts import VERDICT_WORDS, true_verdict
from vlmphys.records import Verdict

pytestmark = pytest.mark.unit

KEY = "sk-secret-4711"
NORMAL, ANOMALOUS = "Normal", "Anomalous"


@pytest.fixture
def annotate(repository, tmp_path, capsys, monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    module = load_script(repository / "data_prep/annotate.py")
    (tmp_path / "latch.yaml").write_text(OUTLINE)

    def run(url: str, *flags: object, states: str = "anomaly_free,slow", out: str = "mine") -> tuple[int, str]:
        status = module.main(["--prior", str(tmp_path / "latch.yaml"), "--states", states, "--out", str(tmp_path / out), "--api-base", url,
                              "--model", "writer", "--tries", "1", *map(str, flags)])
        said = capsys.readouterr()
        return status, said.out + said.err
    return run


def test_good_drafts_become_a_prior_that_the_linter_accepts(annotate, tmp_path):
    with ChatStub(all_good, asked_list) as server:
        status, said = annotate(server.url)
        assert status == 0 and "20 drafts taken, 0 refused; 4 requests" in said
        assert server.asked == {f"{state}.{kind}": 1 for state in ("anomaly_free", "slow") for kind in KINDS}
        assert server.headers["Authorization"] == f"Bearer {KEY}" and server.bodies[0]["temperature"] == 0
        asked = server.bodies[0]["messages"][1]["content"]
        assert "Its parts: A latch has a hook, a spring and a button." in asked and "Its states: anomaly free (normal), slow (anomalous)" in asked
        written = (tmp_path / "mine/latch.yaml").read_text()
        first, _, rest = written.partition("\n")
        assert first.startswith("# Drafted by writer-2026-01-01 (draft-") and first.endswith("Read and edit them before training.")
        assert "20 of the 20 texts" in first and "\nstates:\n  anomaly_free:\n    descriptions:\n      - The hook comes back at once" in rest
        prior = read_prior(tmp_path / "mine/latch.yaml")
        assert [len(getattr(prior.states[state], kind)) for state in ("anomaly_free", "slow") for kind in KINDS] == [5] * 4
        report = lint_priors(tmp_path / "mine")
        assert (report.problems, report.hints, report.files) == ([], [], 1)
        assert annotate(server.url)[0] == 0 and (tmp_path / "mine/latch.yaml").read_text() == written
        assert sum(server.asked.values()) == 4, "kept replies cost nothing"


def test_wrong_verdicts_are_refused_counted_told_and_asked_again(annotate, tmp_path):
    def answer(place, times):
        if place != "slow.descriptions":
            return all_good(place, times)
        bad = [*drafts(place, [0, 1], verdict=NORMAL), {"verdict": ANOMALOUS, "text": "The hook comes back as it should."}]
        return reply(*bad, *drafts(place, [2, 3])) if times == 1 else reply(*drafts(place, [4, 5, 6, 7]))
    with ChatStub(answer, asked_list) as server:
        status, said = annotate(server.url)
        assert status == 0 and "20 drafts taken, 3 refused (wrong verdict 3); 5 requests" in said
        assert "refused: states.slow.descriptions: 'The hook comes back as it should.': wrong verdict: the text says that the clip is normal" in said
        again = server.bodies[-1]["messages"]
        assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
        assert "2 taken, 3 refused" in again[-1]["content"] and "Write 3 others" in again[-1]["content"]
        assert "wrong verdict: Normal stands beside it, and Anomalous is true" in again[-1]["content"]
    seen = read_prior(tmp_path / "mine/latch.yaml").states["slow"].descriptions
    assert seen == tuple(item["text"] for item in drafts("slow.descriptions", [2, 3, 4, 5, 6])), "no refused text, and no more than were wanted"


def test_another_states_text_is_refused_whichever_reply_came_first(annotate, tmp_path):
    def answer(place, times):
        stolen = drafts("slow.descriptions", [0, 1], verdict=ANOMALOUS)
        return reply(*stolen, *drafts(place, [2, 3, 4])) if place == "stuck.descriptions" and times == 1 else reply(*drafts(place, range(5)))
    with ChatStub(answer, asked_list) as server:
        for number, flags in enumerate((("--concurrency", 1), ("--concurrency", 6))):
            status, said = annotate(server.url, *flags, states="slow,stuck", out=f"out{number}")
            assert status == 0 and "2 refused (copy 2)" in said and "copy: it says what states.slow.descriptions says" in said
            server.asked.clear()
    assert (tmp_path / "out0/latch.yaml").read_bytes() == (tmp_path / "out1/latch.yaml").read_bytes()


def test_asking_again_has_an_end_and_what_is_missing_is_said_and_filled_later(annotate, tmp_path):
    with ChatStub(lambda place, _: "I cannot." if place == "slow.explanations" else all_good(place, 1), asked_list) as server:
        status, said = annotate(server.url, "--rounds", 3)
        assert status == 1 and server.asked["slow.explanations"] == 3 and server.asked["slow.descriptions"] == 1
        assert "3 refused (no JSON object 3)" in said and "short: states.slow.explanations: 0 of 5 texts (3 drafts were refused)" in said
    written = tmp_path / "mine/latch.yaml"
    assert "# To write: states.slow.explanations: 0 of 5 texts" in written.read_text()
    with pytest.raises(ValueError, match=r"states.slow.explanations \(line \d+\): a list of at least one text is expected"):
        read_prior(written)
    with ChatStub(all_good, asked_list) as server:
        assert annotate(server.url, "--rounds", 4)[0] == 0, "no one has edited the file, so it is written again"
        assert server.asked == {"slow.explanations": 1}
    assert len(read_prior(written).states["slow"].explanations) == 5


def test_what_a_person_wrote_is_kept_and_never_written_over(annotate, tmp_path):
    with ChatStub(all_good, asked_list) as server:
        assert annotate(server.url)[0] == 0
        file = tmp_path / "mine/latch.yaml"
        edited = file.read_text().replace("The hook comes back late after press number first.", "My own words stand here.")
        file.write_text(edited)
        asked = sum(server.asked.values())
        status, said = annotate(server.url, "--texts", 6)
        assert status == 2 and "holds what a person wrote or edited: it is left alone" in said
        assert file.read_text() == edited and sum(server.asked.values()) == asked
        server.answer = lambda place, _: reply(*drafts(place, [7]))
        assert annotate(server.url, "--prior", file, "--texts", 6, out="more")[0] == 0
        kept = read_prior(tmp_path / "more/latch.yaml").states["slow"].descriptions
        assert kept[0] == "My own words stand here." and len(kept) == 6
        asked = next(body for body in reversed(server.bodies) if asked_list(body) == "slow.descriptions")["messages"][1]["content"]
        assert "My own words stand here.\n" in asked and "Write 1 descriptions" in asked
        assert annotate(server.url, "--prior", file, out="mine/latch.yaml")[0] == 2 and file.read_text() == edited
        status, said = annotate(server.url, out="latch.full.yaml")
        assert status == 2 and re.search(r"named after its category, .*: give \S*/latch.yaml", said)


def test_texts_hints_and_states_come_from_the_outline_and_from_folders(annotate, tmp_path):
    (tmp_path / "latch.yaml").write_text(OUTLINE + """\
category: latch
states:
  slow: The spring is weak.
  stuck:
    hint: Dirt holds the hook.
    descriptions: [The hook never comes back.]
""")
    for folder in ("train", "test/anomaly_free", "test/slow", "test/loose"):
        (tmp_path / "videos/latch" / folder).mkdir(parents=True)
        (tmp_path / "videos/latch" / folder / "0.mp4").touch()
    status, said = annotate("", "--videos", tmp_path / "videos", "--dry-run", states="")
    assert status == 0 and "8 lists, 1 texts are there, 39 to draft: 8 to 32 requests" in said and "nothing was asked" in said
    assert "Its states: anomaly free (normal), slow (anomalous), stuck (anomalous), loose (anomalous)" in said and not (tmp_path / "mine").exists()
    (tmp_path / "videos/latch/test/loose/0.mp4").unlink()
    with ChatStub(all_good, asked_list) as server:
        server.told = lambda body: "stuck.descriptions" if "Dirt holds" in str(body) and "descriptions of what" in str(body) else "other"
        server.answer = lambda *_: (500, {}, "")
        annotate(server.url, "--videos", tmp_path / "videos", states="")
        body = next(body for body in server.bodies if "Dirt holds" in str(body) and "descriptions of what" in str(body))
    asked = body["messages"][1]["content"]
    assert 'The state to write about: stuck (anomalous)\nWhat the person says of it: "Dirt holds the hook."' in asked
    assert "The hook never comes back.\n" in asked and "Write 4 descriptions" in asked


@pytest.mark.parametrize("extra,flags,message", [
    ("", {"states": ""}, "no state but 'anomaly_free': name the anomalies"),
    ("", {"states": "slow,good"}, "the state 'good' would be an anomaly of that name"),
    ("", {"states": "train"}, "its clips take the texts of 'anomaly_free'"),
    ("", {"states": "a/b"}, "cannot be a folder's name"),
    ("motoin: x.\n", {}, "unknown key 'motoin' in line 4 (did you mean 'motion'?)"),
    ("category: a/b\n", {}, "category 'a/b' cannot be a file's name"),
    ("states: {slow: {hint: [a]}}\n", {}, "states.slow.hint (line 4): one text is expected"),
    ("states: {slow: {descriptions: [The hook is late., The hook is late.]}}\n", {}, "repeats latch: states.slow.descriptions"),
    ("", {"states": "hook"}, "component names 'hook' before the verdict"),
])
def test_an_outline_that_cannot_work_is_refused_before_anything_is_asked(annotate, tmp_path, extra, flags, message):
    (tmp_path / "latch.yaml").write_text(OUTLINE + extra)
    status, said = annotate("http://127.0.0.1:9/v1", **flags)
    assert status == 2 and message in said and not (tmp_path / "mine").exists()


@pytest.mark.parametrize("flags,message", [
    (("--api-base", ""), "give --api-base, or set OPENAI_BASE_URL"), (("--model", ""), "give --model, or set OPENAI_MODEL"),
    (("--api-base", "http://me:pass@host/v1"), "--api-base holds a user, a password"),
    (("--key-env", "NO_KEY"), "--key-env NO_KEY: no such variable"),
    (("--texts", 0), "--texts 0: at least 1"), (("--concurrency", 0), "--concurrency 0"), (("--rounds", 0), "--rounds 0"),
    (("--max-words", 2), "--max-words 2: at least 3"), (("--videos", "/nowhere"), "no such folder"), (("--fit", "/nowhere"), "/nowhere")])
def test_flags_that_cannot_work_are_refused(annotate, tmp_path, flags, message):
    status, said = annotate("http://127.0.0.1:9/v1", *flags)
    assert status == 2 and message in said and "pass@" not in said and not list(tmp_path.glob("mine/*"))


def test_the_budget_holds_and_trouble_ends_with_a_message(annotate, tmp_path):
    with ChatStub(lambda place, times: "no" if times < 3 else all_good(place, 1), asked_list) as server:
        status, said = annotate(server.url, "--max-requests", 3)
        assert status == 2 and "the first round needs 4 requests, and --max-requests leaves 3: nothing was asked" in said and not server.asked
        status, said = annotate(server.url, "--max-requests", 6)
        assert status == 2 and sum(server.asked.values()) == 6 and "not asked: the budget" in said and not (tmp_path / "mine/latch.yaml").exists()
        assert annotate(server.url, "--max-requests", 6)[0] == 0 and sum(server.asked.values()) == 12, "what was asked is not asked again"
    with ChatStub(lambda *_: (401, {}, f"bad key {KEY}"), asked_list) as server:
        status, said = annotate(server.url, out="other")
        assert status == 2 and "the server at http://127.0.0.1" in said and "the key is refused: set OPENAI_API_KEY" in said and KEY not in said
    with ChatStub(lambda place, _: (503, {}, "") if place == "slow.descriptions" else all_good(place, 1), asked_list) as server:
        status, said = annotate(server.url, out="third")
        assert status == 1 and "short: states.slow.descriptions: 0 of 5 texts (HTTP 503)" in said


def test_the_key_is_written_nowhere(annotate, tmp_path):
    with ChatStub(lambda place, _: reply({"verdict": NORMAL, "text": f"The key is {KEY} here."}, *drafts(place, range(5))), asked_list) as server:
        status, said = annotate(server.url)
        assert status == 0 and "[key]" in (tmp_path / "mine/latch.drafts.jsonl").read_text()
    assert KEY not in said and not [path for path in tmp_path.rglob("*") if path.is_file() and KEY in path.read_text()]


def test_a_text_of_another_file_in_the_folder_is_not_repeated(annotate, tmp_path):
    (tmp_path / "mine").mkdir()
    texts = {place: [item["text"] for item in drafts(place, [0])] for place in ("slow.descriptions", "slow.explanations")}
    (tmp_path / "mine/bolt.yaml").write_text(json.dumps({
        "component": "A bolt has a rod.", "dynamic": "A hand moves the rod.", "motion": "The rod slides.", "states": {
            "anomaly_free": {"descriptions": ["The rod slides out."], "explanations": ["The rod is free, so it slides."]},
            "slow": {"descriptions": texts["slow.descriptions"], "explanations": texts["slow.explanations"]}}}))
    with ChatStub(lambda place, _: reply(*drafts(place, range(6))), asked_list) as server:
        status, said = annotate(server.url)
    assert status == 0 and "2 refused (copy 2)" in said and "bolt.yaml: states.slow.descriptions" in said
    assert lint_priors(tmp_path / "mine").problems == []


def checks(states=("anomaly_free", "slow"), **settings) -> DraftChecks:
    return DraftChecks(load_priors(["fan"])["fan"], states, **settings)


@pytest.mark.parametrize("verdict,text,state,problem", [
    (ANOMALOUS, "The hook comes back late.", "slow", None), (" anomalous.", "The hook comes back late.", "slow", None),
    (NORMAL, "The hook comes back at once.", "anomaly_free", None),
    (NORMAL, "The hook comes back late.", "slow", "wrong verdict"), (ANOMALOUS, "The hook comes back at once.", "anomaly_free", "wrong verdict"),
    ("", "The hook comes back late.", "slow", "no verdict"), ("Normal or Anomalous", "The hook comes back late.", "slow", "no verdict"),
    (ANOMALOUS, "Nothing is wrong with the hook.", "slow", "wrong verdict"), (ANOMALOUS, "The hook moves in a normal way.", "slow", "wrong verdict"),
    (NORMAL, "The hook has a fault in its spring.", "anomaly_free", "wrong verdict"),
    (NORMAL, "The hook is abnormal.", "anomaly_free", "wrong verdict"),
    (NORMAL, "The hook moves in a normal way.", "anomaly_free", "verdict in the text"),
    (ANOMALOUS, "The hook is abnormal in its motion.", "slow", "verdict in the text"),
    (NORMAL, "The hook is never slow.", "anomaly_free", "anomaly in a normal state's text"),
    (ANOMALOUS, "The hook does not move as it should.", "slow", None), (NORMAL, "The hook moves without any fault.", "anomaly_free", None),
    (ANOMALOUS, "  ", "slow", "empty text"), (ANOMALOUS, "The **hook** is late.", "slow", "markdown"),
    (ANOMALOUS, "- The hook is late.", "slow", "markdown"),
    (ANOMALOUS, "1. The hook is late.", "slow", "markdown"), (ANOMALOUS, "Too late.", "slow", "length"),
    (ANOMALOUS, "The hook " + "really " * 23 + "lags.", "slow", "length"), (ANOMALOUS, "the hook comes back late", "slow", "no sentence"),
    (ANOMALOUS, "The hook is late. It lags.", "slow", "more than one sentence"), (ANOMALOUS, "The hook turns 2.5 degrees late.", "slow", None),
    (ANOMALOUS, "Verdict: Anomalous. Reason: The hook is late.", "slow", "sign of the dialogue's format"),
    (ANOMALOUS, "A shaft is the part that is taken.", "slow", "copy"), (ANOMALOUS, "A shaft is not the part that is taken.", "slow", None)])
def test_checks_of_a_draft(verdict, text, state, problem):
    known = checks()
    known.take("The shaft is a part, that was taken!", "states.slow.descriptions")
    found = known.problem(verdict, text, state, "descriptions")
    assert (found and found.partition(":")[0]) == problem


def test_explanations_must_fit_the_model_and_every_text_of_the_library_passes():
    long = checks(unfitting=lambda prior, state: ["too long"] if len(prior.states[state].explanations[0]) > 30 else [])
    assert long.problem(ANOMALOUS, "The hook is late by a hair.", "slow", "explanations") is None
    assert long.problem(ANOMALOUS, "The hook is late by more than a hair.", "slow", "explanations").startswith("too long for the model")
    assert long.problem(ANOMALOUS, "The hook is late by more than a hair.", "slow", "descriptions") is None
    passed = 0
    for prior in load_priors(known_categories()).values():
        known = DraftChecks(prior, prior.states)
        for part in PARTS:
            known.take(getattr(prior, part), part)
        for state, texts in prior.states.items():
            for kind in KINDS:
                for text in getattr(texts, kind):
                    assert known.problem(VERDICT_WORDS[true_verdict(state)], text, state, kind) is None
                    known.take(text, f"{state}.{kind}")
                    passed += 1
    assert passed == 690


@pytest.mark.parametrize("text,expected", [
    ("It moves as it should.", Verdict.NORMAL), ("It never moves as it should.", Verdict.ANOMALOUS), ("It doesn't work properly.", Verdict.ANOMALOUS),
    ("There is no fault.", Verdict.NORMAL), ("The gear is damaged.", Verdict.ANOMALOUS), ("The spring never fails.", Verdict.NORMAL),
    ("It is not normal.", Verdict.ANOMALOUS), ("The wheel turns.", None), ("It works properly but is damaged.", None)])
def test_the_verdict_that_words_give_away(text, expected):
    assert stated_verdict(text) is expected


@pytest.mark.parametrize("text,count,problem", [
    ('{"texts": [{"verdict": "Normal", "text": " a\\n b "}]}', 1, None), ('[{"verdict": "Normal", "text": "a"}]', 1, None),
    ('<think>hm</think>```json\n{"texts": [{"text": "a"}]}\n```', 1, None), ("", 0, "empty reply"), ("Sure! Here", 0, "no JSON object"),
    ('{"texts": []}', 0, 'no list "texts"'), ('{"texts": ["a"]}', 0, 'no list "texts"'), ("[" * 5000, 0, "no JSON object"),
    ("3", 0, 'no list "texts"')])
def test_replies_are_read_strictly(text, count, problem):
    found, why = read_drafts(text)
    assert len(found) == count and (why is None if problem is None else why.startswith(problem))
    assert all(found_text == " ".join(found_text.split()) for _, found_text in found)
