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


LATCH = """\
component: A latch has a ball, a hook and a spring.
dynamic: The spring turns the hook.
motion: The hook goes down behind the ball and comes up again.
states:
  anomaly_free:
    descriptions: ["The hook goes down and comes up."]
    explanations: ["The spring has no leak, and nothing blocks the hook."]
  ball_stuck:
    descriptions: ["The hook stays below."]
    explanations: [The ball is stuck in the hook.]
"""


@pytest.mark.parametrize(("old", "new", "found"), [
    ("The spring turns the hook.", "The button is stuck to the hook.", "dynamic names 'stuck' before the verdict"),
    ("The spring turns the hook.", "The ball stuck here turns the hook.", "dynamic names 'ball stuck' before the verdict"),
    ("The hook goes down behind", "The hook moves as it should behind", "motion names 'as it should' before the verdict"),
    ("The hook goes down behind", "The hook has no defect behind", "motion names 'defect' before the verdict"),
    ("The hook goes down and comes up.", "The hook is abnormal here.", "states.anomaly_free.descriptions says 'abnormal' in a text of normal"),
    ("nothing blocks the hook.", "no ball stuck.", "states.anomaly_free.explanations says 'ball stuck' in a text of normal"),
    ("The hook goes down and comes up.", "The hook is stuck at first.", "states.anomaly_free.descriptions says 'stuck' in a text of normal"),
    ("The hook stays below.", "The hook moves normally.", "states.ball_stuck.descriptions says 'moves normally' in a text of anomalous"),
])
def test_words_that_give_the_answer_away_are_found_with_their_line(tmp_path, command, old, new, found):
    assert old in LATCH
    text = LATCH.replace(old, new)
    (tmp_path / "latch.yaml").write_text(text)
    status, said = command("--priors", tmp_path)
    line = next(number for number, line in enumerate(text.splitlines(), 1) if new in line)
    problems = [row for row in said.out.splitlines() if row.startswith("problem: ")]
    assert status == 1 and len(problems) == 1, said.out
    assert problems[0].startswith(f"problem: latch: {found}") and problems[0].endswith(f"({tmp_path / 'latch.yaml'}, line {line})")


@pytest.mark.parametrize(("old", "new"), [
    ("The spring turns the hook.", "The balls sit in a jamb, and by default the default spring turns them."),
    ("The hook goes down and comes up.", "Nothing abnormal is seen, and the hook is not stuck."),
    ("The hook stays below.", "The ball looks normal, but the hook stays below."),
    ("The hook stays below.", "The hook is slower than normal."),
    ("states:", "questions: {motion: ['How does it move when it moves as it should?']}\nstates:"),
])
def test_ordinary_words_are_no_leak(tmp_path, command, old, new):
    assert old in LATCH
    (tmp_path / "latch.yaml").write_text(LATCH.replace(old, new))
    status, said = command("--priors", tmp_path)
    assert status == 0, said.out


def test_a_text_that_stands_twice_is_shown_where_it_stands_again(tmp_path, command):
    (tmp_path / "latch.yaml").write_text(LATCH.replace("The hook stays below.", "The hook goes down and comes up."))
    status, said = command("--priors", tmp_path)
    assert status == 1 and f"repeats latch: states.anomaly_free.descriptions: 'The hook goes down and comes up.' ({tmp_path}/latch.yaml, line 9)" \
        in said.out


def test_names_of_files(tmp_path, command):
    for name in ("L\u00e4tch.yaml", "my latch.yaml", ".#latch.yaml", "bolt.yml"):
        (tmp_path / name).write_text(LATCH.replace("hook", f"hook of {name.rpartition('.')[0].strip('.#')}"))
    status, said = command("--priors", tmp_path)
    assert status == 1 and said.out.count("problem: ") == 1 and "3 files" in said.out
    assert f"problem: prior {tmp_path}/bolt.yml: is named .yml, only .yaml are read: rename it" in said.out
    assert "hint: my latch: the name holds a blank, which launch/reproduce_paper.sh --per-category does not take" in said.out
    with pytest.raises(ValueError, match="bolt.yml is named .yml, only .yaml are read: rename it"):
        known_categories(tmp_path)
    (tmp_path / "bolt.yml").unlink()
    assert {"L\u00e4tch", "my latch"} <= set(known_categories(tmp_path)) and ".#latch" not in known_categories(tmp_path)


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
    assert status == 0 and "hint: fan: states.stuck.descriptions has 4 of the 5" in said.out and "clean: 1 file, " in said.out


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


@pytest.mark.parametrize(("script", "arguments"), [
    ("data_prep/verify.py", ["--prior", "package"]), ("data_prep/priors.py", ["export", "--out", "x.json", "--text", "1"]),
    ("data_prep/priors.py", ["import", "x.json", "--ou", "x"]), ("data_prep/simulate.py", ["--out", "x", "--categorie", "fan"]),
    ("tests/bench/leak_audit.py", ["--videos", "x", "--work", "1"]), ("tests/bench/oracle.py", ["--videos", "x", "--categor", "fan"]),
    ("tests/bench/frame_order.py", ["--ru", "x"])])
def test_options_are_written_out(repository, monkeypatch, capsys, script, arguments):
    module = load_script(repository / script)
    monkeypatch.setattr("sys.argv", [script, *arguments])
    with pytest.raises(SystemExit):
        module.main()
    error = capsys.readouterr().err
    assert "unrecognized arguments" in error or "arguments are required" in error, error
