"""PAEval libraries: exported and imported texts are the same, and what is missing is said before it is missed."""

from __future__ import annotations

import errno
import json

import pytest
from launching import load_script

from vlmphys.paeval import sentence
from vlmphys.priors import PARTS, known_categories, load_prior, load_priors, priors_sha256, read_prior

pytestmark = pytest.mark.unit

LATCH = {"latch": {"description_label": {"anomaly_free": ["the hook opens"], "slow": ["The hook comes back late."]},
                   "explanation_label": {"anomaly_free": ["The spring pulls: at once."], "slow": ["The spring\nis weak."]}}}


@pytest.fixture
def command(repository, capsys):
    module = load_script(repository / "data_prep/priors.py")

    def run(*arguments):
        status = module.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def test_round_trip(tmp_path, command):
    assert command("export", "--out", tmp_path / "library.json", "--texts", 0)[0] == 0
    library = json.loads((tmp_path / "library.json").read_text())
    fan = load_prior("fan")
    assert library["fan"]["explanation_label"]["stuck"] == list(fan.states["stuck"].explanations)
    assert set(library) == set(known_categories()) and set(library["fan"]) == {"description_label", "explanation_label"}
    status, said = command("import", tmp_path / "library.json", "--out", tmp_path / "priors")
    assert status == 0 and f"{len(library)} files written" in said and "sentences" not in said
    back = {category: read_prior(tmp_path / "priors" / f"{category}.yaml") for category in library}
    assert priors_sha256(back) == priors_sha256(load_priors(library))


def test_the_published_form_has_five_texts(tmp_path, command):
    source = load_prior("fan")
    more = "      - The fan is one more case.\n"
    text = open(source.source).read().replace("    explanations:\n", more + "    explanations:\n", 1)
    (tmp_path / "fan.yaml").write_text(text)
    status, said = command("export", "--out", tmp_path / "library.json", "--priors", tmp_path, "--categories", "fan")
    assert status == 0 and "1 left out" in said
    library = json.loads((tmp_path / "library.json").read_text())
    assert {len(texts) for labels in library["fan"].values() for texts in labels.values()} == {5}


def test_a_category_without_a_prior_is_left_to_complete(tmp_path, command):
    (tmp_path / "library.json").write_text(json.dumps(LATCH))
    status, said = command("import", tmp_path / "library.json", "--out", tmp_path / "mine")
    path = tmp_path / "mine" / "latch.yaml"
    assert status == 1 and f"to complete: {path} needs its three sentences, component, dynamic and motion" in said
    assert "2 texts were made sentences" in said
    with pytest.raises(ValueError, match="'component' is missing; 'dynamic' is missing; 'motion' is missing"):
        read_prior(path)
    completed = path.read_text()
    for part in PARTS:
        completed = completed.replace(f"# {part}:", f"{part}:")
    path.write_text(completed)
    assert read_prior(path).states["slow"].explanations == ("The spring is weak.",)
    assert read_prior(path).states["anomaly_free"].explanations == ("The spring pulls: at once.",)
    assert read_prior(path).states["anomaly_free"].descriptions == ("The hook opens.",)
    status, said = command("import", tmp_path / "library.json", "--out", tmp_path / "again", "--priors", tmp_path / "mine")
    assert status == 0 and load_prior("latch", tmp_path / "again").motion == load_prior("latch", tmp_path / "mine").motion


@pytest.mark.parametrize(("text", "made"), [
    ('"the hook" opens', '"The hook" opens.'), ("(the hook opens.)", "(The hook opens.)"), ("“it opens.”", "“It opens.”"),
    ("It opens.", "It opens."), ("3 hooks  open!", "3 hooks open!"), ("[the hook opens]", "[The hook opens].")])
def test_a_text_is_made_a_sentence_that_a_prior_takes(tmp_path, command, text, made):
    assert sentence(text) == made
    library = {"latch": {label: {"anomaly_free": [text]} for label in ("description_label", "explanation_label")}}
    (tmp_path / "library.json").write_text(json.dumps(library))
    assert command("import", tmp_path / "library.json", "--out", tmp_path / "mine")[0] == 1
    path = tmp_path / "mine/latch.yaml"
    path.write_text(path.read_text().replace("# component", "component").replace("# dynamic", "dynamic").replace("# motion", "motion"))
    assert read_prior(path).states["anomaly_free"].explanations == (made,)


def test_what_a_prior_would_refuse_is_never_written(tmp_path, command):
    """The next attempt would find its own file there."""
    library = {"fan": LATCH["latch"], "latch": {label: {**states, "slow": ["…"]} for label, states in LATCH["latch"].items()}}
    (tmp_path / "library.json").write_text(json.dumps(library))
    status, said = command("import", tmp_path / "library.json", "--out", tmp_path / "mine")
    assert status == 2 and "prior latch: states.slow.descriptions" in said and not (tmp_path / "mine").exists()
    (tmp_path / "library.json").write_text(json.dumps({"fan": LATCH["latch"]}))
    assert command("import", tmp_path / "library.json", "--out", tmp_path / "mine")[0] == 0
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["fan.yaml"]


def test_a_folder_that_takes_no_file_is_told_in_one_sentence(tmp_path, command, monkeypatch):
    (tmp_path / "library.json").write_text(json.dumps(LATCH))
    (tmp_path / "file").touch()
    status, said = command("import", tmp_path / "library.json", "--out", tmp_path / "file" / "under")
    assert status == 2 and "error: --out " in said and "under cannot be written (Not a directory): give a folder that you may write to" in said

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vlmphys.paeval.write_atomic", full)
    status, said = command("import", tmp_path / "library.json", "--out", tmp_path / "mine")
    assert status == 2 and "make room and run it again" in said and not (tmp_path / "mine").exists()
    status, said = command("export", "--out", "/proc/x.json")
    assert status == 2 and said.startswith("error: --out /proc/x.json cannot be written") and "you may write to" in said


def test_files_that_are_there_stay(tmp_path, command):
    (tmp_path / "library.json").write_text(json.dumps(LATCH))
    (tmp_path / "latch.yaml").write_text("mine")
    status, said = command("import", tmp_path / "library.json", "--out", tmp_path)
    assert status == 2 and "latch.yaml exists" in said and (tmp_path / "latch.yaml").read_text() == "mine"


@pytest.mark.parametrize(("document", "message"), [
    ({}, "holds no category"), ({"a/b": {}}, "'a/b' cannot be a category"),
    ({"fan": {"description_label": {}}}, "description_label and explanation_label"),
    ({"fan": {"description_label": {"anomaly_free": []}, "explanation_label": {"anomaly_free": ["x"]}}},
     "fan.description_label.anomaly_free: a list"),
    ({"fan": {label: {"anomaly_free": ["x"], "train": ["x"]} for label in ("description_label", "explanation_label")}}, "has a state 'train'"),
    ({"fan": {"description_label": {"anomaly_free": ["x"]}, "explanation_label": {"stuck": ["x"]}}}, "'stuck' has no description_label"),
    ({"fan": {"description_label": {"stuck": ["x"]}, "explanation_label": {"stuck": ["x"]}}}, "no state 'anomaly_free'"),
    ({"fan": {"description_label": {"anomaly_free": ["x"]}, "explanation_label": {"anomaly_free": ["Verdict: x"]}}}, "holds 'Verdict:'")])
def test_a_broken_library_is_refused(tmp_path, command, document, message):
    (tmp_path / "library.json").write_text(json.dumps(document))
    status, said = command("import", tmp_path / "library.json", "--out", tmp_path / "out")
    assert status == 2 and message in said and not (tmp_path / "out").exists()


def test_bad_arguments_are_refused(tmp_path, command):
    for arguments, message in ((["export", "--out", tmp_path / "no" / "x.json"], "its folder does not exist"),
                               (["export", "--out", tmp_path], "is a folder"),
                               (["export", "--out", tmp_path / "x.json", "--texts", -1], "--texts is -1"),
                               (["export", "--out", tmp_path / "x.json", "--categories", "fann"], "did you mean 'fan'"),
                               (["import", tmp_path / "none.json", "--out", tmp_path], "no such file")):
        status, said = command(*arguments)
        assert status == 2 and message in said
