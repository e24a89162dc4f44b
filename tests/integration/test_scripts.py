"""The shell scripts: mistakes are told in one sentence before anything is written, and stages are skipped, repeated and resumed as they should."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("script", "arguments", "message"), [
    ("quickstart", ["--variants", "multi_turn,two_turn"], "unknown variant 'two_turn': allowed are multi_turn, single_turn, no_physics"),
    ("quickstart", ["--clips-per-state", "many"], "--clips-per-state is 'many'"),
    ("quickstart", ["--clips-per-state", "1"], "at least 2 is needed, one clip to train on and one to test"),
    ("quickstart", ["--appearance", "sepia"], "unknown appearance 'sepia'"),
    ("quickstart", ["--clips-per-state", "3", "--per-anomaly", "3"], "give at most 2"),
    ("quickstart", ["--priors", "no/such"], "--priors 'no/such' is no folder"),
    ("quickstart", ["--seed", "x"], "--seed is 'x'"),
    ("quickstart", ["--videos", "no/such/folder"], "--videos 'no/such/folder' is no folder"),
    ("quickstart", ["--clips"], "unknown option --clips"),
    ("quickstart", ["--seed"], "--seed needs a value"),
    ("single_4090", ["--videos", "tests", "--model", "tiny", "--tune", "all"], "unknown --tune 'all'"),
    ("single_4090", [], "--videos and --model are needed"),
    ("single_4090", ["--videos", "no/such/folder", "--model", "tiny"], "--videos 'no/such/folder' is no folder"),
    ("single_4090", ["--videos", "tests", "--model", "tiny", "--variant", "none"], "unknown variant 'none'"),
])
def test_mistakes_are_refused_before_anything_is_written(repository, tmp_path, script, arguments, message):
    out = tmp_path / "out"
    done = subprocess.run(["bash", f"launch/{script}.sh", "--out", str(out), *arguments], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and message in done.stderr
    assert not out.exists()


def stages(repository: Path, tmp_path: Path, script: str) -> subprocess.CompletedProcess:
    text = "set -eu -o pipefail\nfail() { echo \"error: $*\" >&2; exit 2; }\n. launch/stages.sh\n" + script
    return subprocess.run(["bash", "-c", text], cwd=repository, capture_output=True, text=True, env={"T": str(tmp_path), "PATH": "/usr/bin:/bin"})


def test_a_stage_runs_once_and_again_when_its_command_or_what_came_before_changes(repository, tmp_path):
    run = """
    stage "$T/done/a" "first" "" bash -c "echo a$1 >> $T/log"
    stage "$T/done/b" "second" "$T/done/a" bash -c "echo b >> $T/log"
    """
    for settings in ("1", "1", "2"):
        assert stages(repository, tmp_path, f"set -- {settings}\n{run}").returncode == 0
    assert (tmp_path / "log").read_text().split() == ["a1", "b", "a2", "b"]


def test_a_failed_stage_is_tried_again_and_those_before_it_are_not(repository, tmp_path):
    run = 'stage "$T/done/a" "first" "" bash -c "echo a >> $T/log"\nstage "$T/done/b" "second" "$T/done/a" test -f "$T/repaired"'
    failed = stages(repository, tmp_path, run)
    assert failed.returncode == 2 and "the stage 'second' failed" in failed.stderr
    (tmp_path / "repaired").touch()
    assert stages(repository, tmp_path, run).returncode == 0
    assert (tmp_path / "log").read_text().split() == ["a"]


def test_one_folder_holds_one_set_of_settings(repository, tmp_path):
    claim = 'claim_out "$T/out" "clips=%s"\necho went on'
    assert "went on" in stages(repository, tmp_path, claim % 30).stdout
    assert "went on" in stages(repository, tmp_path, claim % 30).stdout
    refused = stages(repository, tmp_path, claim % 12)
    assert refused.returncode == 2 and "made with other settings (clips=30), not (clips=12)" in refused.stderr and "went on" not in refused.stdout


def test_a_folder_of_others_is_not_claimed_and_a_refused_first_stage_leaves_nothing(repository, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes").touch()
    refused = stages(repository, tmp_path, 'claim_out "$T/theirs" "clips=1"')
    assert refused.returncode == 2 and "was not made by this script" in refused.stderr
    assert stages(repository, tmp_path, 'claim_out "$T/a b" "clips=1"').returncode == 2
    assert stages(repository, tmp_path, 'claim_out "$T/out" "x"; stage "$T/out/done/a" "first" "" false').returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


def test_a_clip_that_comes_repeats_the_stages(repository, tmp_path):
    run = 'claim_out "$T/out" "x"; list_videos "$T/videos" "$T/out/videos.list"; stage "$T/out/done/a" "first" "$T/out/videos.list" bash -c "echo a >> $T/log"'
    (tmp_path / "videos").mkdir()
    for expected in (1, 1, 2):
        if expected == 2:
            (tmp_path / "videos" / "new.mp4").touch()
        assert stages(repository, tmp_path, run).returncode == 0
        assert len((tmp_path / "log").read_text().split()) == expected


def test_predictions_older_than_the_model_are_made_anew(repository, tmp_path):
    rows, mark = tmp_path / "p.jsonl", tmp_path / "mark"
    mark.touch()
    rows.touch()
    assert stages(repository, tmp_path, 'drop_stale "$T/p.jsonl" "$T/mark"').returncode == 0 and rows.exists()
    subprocess.run(["touch", "-d", "1 hour ago", str(rows)], check=True)
    assert stages(repository, tmp_path, 'drop_stale "$T/p.jsonl" "$T/mark"').returncode == 0 and not rows.exists()
