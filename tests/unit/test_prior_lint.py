"""The linter of priors: the package's own are clean, and each kind of fault is found, in every file."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from launching import load_script

from vlmphys.mechanisms import known_mechanisms
from vlmphys.prior_lint import lint_priors, uncovered
from vlmphys.priors import KINDS, PRIORS_FOLDER, known_categories, load_priors
from vlmphys.prompts import SYSTEM

pytestmark = pytest.mark.unit


@pytest.fixture
def command(repository, monkeypatch, capsys):
    module = load_script(repository / "data_prep/verify.py")

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["verify", *(str(argument) for argument in arguments)])
        return module.main(), capsys.readouterr()

    return run


def copy(folder, category: str, *changes: tuple[str, str], name: str | None = None):
    text = (PRIORS_FOLDER / f"{category}.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / f"{name or category}.yaml").write_text(text)


def test_the_package_is_clean_and_counted(command):
    priors = load_priors(known_categories())
    texts = sum(len(getattr(one, kind)) for prior in priors.values() for one in prior.states.values() for kind in KINDS)
    states = sum(len(prior.states) for prior in priors.values())
    status, said = command("--priors", "package")
    assert (status, said.out) == (0, f"clean: {len(priors)} files, {states} states, {texts} texts\n")


def test_every_file_is_read_and_every_fault_named(tmp_path, command, tiny_model_folder):
    copy(tmp_path, "fan", (load_priors(["fan"])["fan"].motion, "The hub vibrates."))
    copy(tmp_path, "clip", ("component:", "compnent:"))
    copy(tmp_path, "hinge", (load_priors(["hinge"])["hinge"].component, "A hinge has " + "very " * 3000 + "many parts."))
    copy(tmp_path, "slide")
    copy(tmp_path, "slide", name="chute")
    report = lint_priors(tmp_path, str(tiny_model_folder))
    assert report.files == 5
    assert any("fan: motion names 'vibrates' before the verdict" in problem for problem in report.problems)
    assert any("clip.yaml" in problem and "unknown key 'compnent' in line 1" in problem for problem in report.problems)
    assert sum("states.falloff (multi_turn)" in problem and "positions" in problem for problem in report.problems) == 1
    repeated = [problem for problem in report.problems if problem.startswith("slide: ") and "repeats chute: " in problem]
    assert len(repeated) == 3 + sum(len(getattr(one, kind)) for one in load_priors(["slide"])["slide"].states.values() for kind in KINDS)
    assert len(report.problems) == len(set(report.problems)), "each is told once"
    status, said = command("--priors", tmp_path, "--model", tiny_model_folder)
    assert status == 1 and f"{len(report.problems)} problem(s) found in 5 files" in said.out


def test_dialogues_are_measured_with_the_system_sentence(tmp_path, tiny_model_folder, monkeypatch):
    copy(tmp_path, "fan")
    given = []
    monkeypatch.setattr("vlmphys.prior_lint.tokenize_dialogue", lambda *arguments: given.append(arguments[-1]))
    lint_priors(tmp_path, str(tiny_model_folder))
    assert len(given) == 4 * 3 and set(given) == {SYSTEM}


def test_checking_packed_data_imports_no_torch(repository):
    code = "import runpy, sys; runpy.run_path('data_prep/verify.py'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(repository)})
    assert done.stdout == "False\n", done.stderr


def test_few_texts_are_a_hint(tmp_path, command):
    text = load_priors(["fan"])["fan"].states["stuck"].descriptions[0]
    copy(tmp_path, "fan", (f"      - {text}\n", ""))
    status, said = command("--priors", tmp_path)
    assert status == 0 and "hint: fan: states.stuck.descriptions has 4 of the 5" in said.out and "clean: 1 files" in said.out


def test_a_mechanism_without_a_prior_or_a_state_without_texts_is_told():
    priors = load_priors(known_mechanisms())
    assert uncovered(priors) == []
    del priors["fan"], priors["gear"].states["stuck"]
    assert uncovered(priors) == ["fan: is simulated, but has no prior", "gear: the state 'stuck' is simulated, but has no texts"]


def test_folders_that_hold_none_are_refused(tmp_path, command):
    for arguments, message in (([], "nothing to check: give --data DIR, or --priors DIR"), (["--priors", tmp_path / "no"], "does not exist"),
                               (["--priors", tmp_path], "holds no <category>.yaml file")):
        status, said = command(*arguments)
        assert status == 2 and message in said.err
