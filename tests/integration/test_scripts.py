"""The shell scripts: mistakes are told in one sentence before anything is written, and stages are skipped, repeated and resumed as they should."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlmphys.config import load_config, to_yaml
from vlmphys.records import VIDEO_SUFFIXES

pytestmark = pytest.mark.integration


def without_gpu(tmp_path: Path) -> dict[str, str]:
    """An environment with the programs that the scripts' checks use, and no nvidia-smi."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "dirname", "cat", "find", "sed", "cut", "sort"):
        (programs / name).symlink_to(shutil.which(name))
    return {"PATH": str(programs)}


@pytest.mark.parametrize(("script", "arguments", "message"), [
    ("quickstart", ["--variants", "multi_turn,two_turn"], "unknown variant 'two_turn': allowed are multi_turn, single_turn, no_physics"),
    ("quickstart", ["--clips-per-state", "many"], "--clips-per-state is 'many'"),
    ("quickstart", ["--clips-per-state", "1"], "at least 2 is needed, one clip to train on and one to test"),
    ("quickstart", ["--appearance", "sepia"], "unknown appearance 'sepia'"),
    ("quickstart", ["--clips-per-state", "3", "--per-anomaly", "3"], "give at most 2"),
    ("quickstart", ["--priors", "no/such"], "--priors 'no/such' is no folder"),
    ("quickstart", ["--priors", "vlmphys/priors/fan.yaml"], "--priors 'vlmphys/priors/fan.yaml' is a file: give the folder"),
    ("quickstart", ["--epochs", "0"], "--epochs is '0'"),
    ("quickstart", ["--epochs", "5", "--max-steps", "5"], "--epochs and --max-steps both say how long to train"),
    ("quickstart", ["--seed", "x"], "--seed is 'x'"),
    ("quickstart", ["--videos", "no/such/folder"], "--videos 'no/such/folder' is not there: give a folder in the layout"),
    ("quickstart", ["--videos", "tests", "--protocol", "kfold"], "unknown --protocol 'kfold'"),
    ("quickstart", ["--protocol", "given"], "--protocol given takes the sides of a list of clips"),
    ("quickstart", ["--videos", "tests", "--protocol", "given", "--per-anomaly", "2"], "--per-anomaly belongs to --protocol weak"),
    ("quickstart", ["--videos", "tests", "--categories", "fan"], "--categories chooses simulated mechanisms, and --videos takes clips of yours"),
    ("quickstart", ["--clips"], "unknown option --clips"),
    ("quickstart", ["--seed"], "--seed needs a value"),
    ("single_4090", ["--videos", "tests", "--model", "tiny", "--tune", "all"], "unknown --tune 'all'"),
    ("single_4090", [], "--videos and --model are needed"),
    ("single_4090", ["--videos", "no/such/folder", "--model", "tiny"], "--videos 'no/such/folder' is not there"),
    ("single_4090", ["--videos", "tests", "--model", "tiny", "--protocol", "kfold"], "unknown --protocol 'kfold'"),
    ("single_4090", ["--videos", "tests", "--model", "tiny", "--protocol", "given", "--per-anomaly", "2"], "--per-anomaly belongs to --protocol weak"),
    ("single_4090", ["--videos", "tests", "--model", "tiny", "--variant", "none"], "unknown variant 'none'"),
    ("single_4090", ["--videos", "tests", "--model", "tiny", "--tune", "qlora"], "--tune qlora needs a CUDA GPU"),
    *(("single_4090", ["--videos", "tests", "--model", "tiny", "--set", f"{key}=x"], f"--set {key}=x: use --{key}")
      for key in ("model", "variant", "tune", "out")),
    ("single_4090", ["--videos", "tests", "--model", "tiny", "--set", "data=x"], "--set data=x: the data are packed from --videos"),
    ("single_4090", ["--videos", "tests", "--model", "tiny", "--set", "per_device_train_batch_size=3"],
     "--set per_device_train_batch_size=3 does not divide 16, the clips of an update: add --set gradient_accumulation_steps=N"),
    ("single_4090", ["--videos", "tests", "--model", "tiny", "--set", "gradient_accumulation_steps=many"],
     "--set gradient_accumulation_steps is 'many'"),
    ("reproduce_paper", ["--videos", "no/such/folder"], "--videos 'no/such/folder' is not there: give a folder in the layout"),
    ("reproduce_paper", ["--anomalies", "given"], "--anomalies given takes the sides of a list of clips"),
    ("reproduce_paper", ["--seeds", "0"], "--seeds is '0'"),
    ("reproduce_paper", ["--anomalies", "some"], "--anomalies is 'some': give 'published', 'half', 'given', or the number of clips"),
    ("reproduce_paper", ["--gpus", "3"], "--gpus is '3': 1, 2, 4, 8 or 16"),
    ("reproduce_paper", ["--recipe", "no.yaml"], "--recipe 'no.yaml' is no file"),
    ("reproduce_paper", ["--set", "seed=3"], "--set seed=3: this script gives that key itself"),
    ("reproduce_paper", ["--set", " seed =3"], "--set  seed =3: this script gives that key itself"),
    ("reproduce_paper", ["--gpus", "2", "--set", "per_device_train_batch_size = 4"], "with --gpus 2 this script divides the 16 clips"),
    ("reproduce_paper", ["--set", "gradient_accumulation_steps=4", "--gpus", "4"], "with --gpus 4 this script divides the 16 clips"),
    ("reproduce_paper", ["--videos", "tests", "--per-category"], "--videos 'tests' holds no clip"),
    ("reproduce_paper", ["--variants", "none"], "unknown variant 'none'"),
])
def test_mistakes_are_refused_before_anything_is_written(repository, tmp_path, script, arguments, message):
    out = tmp_path / "out"
    done = subprocess.run(["bash", f"launch/{script}.sh", "--out", str(out), *arguments], cwd=repository, capture_output=True, text=True,
                          env=without_gpu(tmp_path))
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
    assert refused.returncode == 2 and "made with other settings: clips=30 there, clips=12 here" in refused.stderr and "went on" not in refused.stdout


def test_a_folder_of_others_is_not_claimed_and_a_refused_first_stage_leaves_nothing(repository, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes").touch()
    refused = stages(repository, tmp_path, 'claim_out "$T/theirs" "clips=1"')
    assert refused.returncode == 2 and "was not made by this script" in refused.stderr
    assert stages(repository, tmp_path, 'claim_out "$T/a b" "clips=1"').returncode == 2
    assert stages(repository, tmp_path, 'claim_out "$T/out" "x"; stage "$T/out/done/a" "first" "" false').returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


def test_a_claim_is_given_back_while_nothing_but_lists_and_a_split_was_made(repository, tmp_path):
    """The first stages refuse a category without a prior: the corrected command, which has other settings, must be taken."""
    run = """
    claim_out "$T/out" "priors=$1"
    echo clip > "$T/out/videos.list"
    stage "$T/out/done/split" "splitting" "$T/out/videos.list" touch "$T/out/split.json"
    stage "$T/out/done/pack" "packing" "$T/out/done/split" bash -c "[ $1 = mine ] || exit 2; echo > $T/out/packed"
    stage "$T/out/done/train" "training" "$T/out/done/pack" bash -c "[ -f $T/repaired ] || exit $2"
    """
    refused = stages(repository, tmp_path, f"set -- builtin 2\n{run}")
    assert refused.returncode == 2 and not (tmp_path / "out").exists()
    assert refused.stderr == "error: the stage 'packing' failed; correct this, then run the same or the corrected command again\n"
    corrected = stages(repository, tmp_path, f"set -- mine 2\n{run}")
    assert "correct this, then run the same command again, which goes on from there" in corrected.stderr and (tmp_path / "out/packed").exists()
    assert "run the same command again to go on" in stages(repository, tmp_path, f"set -- mine 1\n{run}").stderr
    assert "made with other settings: priors=mine there, priors=builtin here" in stages(repository, tmp_path, f"set -- builtin 2\n{run}").stderr
    (tmp_path / "repaired").touch()
    assert stages(repository, tmp_path, f"set -- mine 2\n{run}").returncode == 0


def test_options_that_pack_py_names_over_packed_frames_are_said_to_be_its_own(repository, tmp_path):
    run = 'advise_on_pack "$T/packed"\nstage "$T/done/pack" "packing" "" bash -c "exit 2"'
    assert "--drop" not in stages(repository, tmp_path, run).stderr
    (tmp_path / "packed/frames").mkdir(parents=True)
    assert f"give them to it once, or remove {tmp_path}/packed; correct this" in stages(repository, tmp_path, run).stderr
    assert stages(repository, tmp_path, 'advise_on_pack "$T/packed"\nadvise_on_pack "$T/other"\necho "[$advice]"').stdout == "[]\n"
    for script in ("quickstart", "single_4090", "reproduce_paper"):
        assert "advise_on_pack" in (repository / f"launch/{script}.sh").read_text()


@pytest.mark.parametrize(("script", "arguments"), [("single_4090", ["--videos", "tests", "--model", "tiny"]), ("reproduce_paper", [])])
def test_a_misspelt_key_is_refused_before_the_folder_is_claimed(repository, tmp_path, script, arguments):
    shutil.copytree(repository / "launch", tmp_path / "launch")
    for name in ("ds_configs", "vlmphys", "tests"):
        (tmp_path / name).symlink_to(repository / name)
    (tmp_path / "launch/environment.sh").write_text('fail() { echo "error: $*" >&2; exit 2; }\nensure_environment() { :; }\n')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(f'#!/bin/sh\nPYTHONPATH="{repository}" exec "{sys.executable}" "$@"\n')
    (tmp_path / "bin/python").chmod(0o755)
    done = subprocess.run(["bash", f"launch/{script}.sh", *arguments, "--set", "max_step=4", "--out", "out"], cwd=tmp_path, capture_output=True,
                          text=True, env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"})
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr == "error: the config: unknown key 'max_step' (did you mean 'max_steps'?)\n"


def test_another_set_is_taken_until_a_training_has_ended(repository, tmp_path):
    run = """
    claim_out "$T/out" "videos=a priors=builtin set=$1"
    stage "$T/out/done/pack" "packing" "" bash -c "echo pack >> $T/log; touch $T/out/packed"
    stage "$T/out/done/train" "training" "$T/out/done/pack" bash -c "[ $1 = lora_r=8 ] || exit 2"
    """
    refused = stages(repository, tmp_path, f"set -- lora_r=99\n{run}")
    assert refused.returncode == 2 and "or with another --set" in refused.stderr and (tmp_path / "out/packed").exists()
    for _ in range(2):
        assert stages(repository, tmp_path, f"set -- lora_r=8\n{run}").returncode == 0
    assert (tmp_path / "log").read_text().split() == ["pack"], "what was packed is kept"
    refused = stages(repository, tmp_path, f"set -- 'lora_r=8 seed=1'\n{run}")
    assert refused.returncode == 2 and "made with other settings: nothing there, seed=1 here; give another --out" in refused.stderr


def test_other_settings_than_those_of_a_begun_training_are_refused_at_once(repository, tmp_path):
    """It was stopped, or its script was: no mark says that it ended, and train.py would refuse after a stage's start."""
    recipe, begun = repository / "launch/recipes/paper_tiny.yaml", tmp_path / "out/seed_3/multi_turn"
    begun.mkdir(parents=True)
    config = load_config(recipe, ["model=tiny", "variant=multi_turn", "data=packed", f"out={begun}", "seed=3", "max_steps=4"])
    (begun / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "out/settings").write_text("videos=a set=max_steps=4\n")
    run = f"""
    python() {{ PYTHONPATH="{repository}" "{sys.executable}" "$@"; }}
    check_begun "$T/out" "{recipe}" %s
    claim_out "$T/out" "videos=a set=%s"
    """
    refused = stages(repository, tmp_path, run % (("max_steps=6",) * 2))
    assert refused.returncode == 2 and refused.stderr == (
        f"error: the training in {begun} has begun with other settings: max_steps (4 there, 6 here); go on with the same settings, remove {begun} "
        "to train it anew, or give another --out\n")
    assert stages(repository, tmp_path, run % (("max_steps=4",) * 2)).returncode == 0
    free = "max_steps=4 save_steps=2"
    assert stages(repository, tmp_path, run % (free, free)).returncode == 0, "a key that a begun training may change"


def test_settings_of_earlier_versions_are_known_again(repository, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings").write_text("videos=a priors=own seed=0\n")
    assert stages(repository, tmp_path, 'claim_out "$T/out" "videos=a priors=mine seed=0"').returncode == 2
    for _ in range(2):
        assert stages(repository, tmp_path, 'claim_out "$T/out" "videos=a priors=builtin seed=0"').returncode == 0


def test_the_table_is_shown_once_by_every_run(repository, tmp_path):
    run = """
    stage "$T/done/score" "scoring" "" bash -c "mkdir -p $T/scores; echo TABLE | tee $T/scores/table.md"
    show_results "$T"
    """
    for _ in range(2):
        done = stages(repository, tmp_path, run)
        assert done.returncode == 0 and done.stdout.count("TABLE") == 1 and done.stdout.index("TABLE") < done.stdout.index("== done: ")


def test_a_clip_that_comes_repeats_the_stages(repository, tmp_path):
    run = """
    claim_out "$T/out" "x"; list_videos "$T/videos" "$T/out/videos.list"
    stage "$T/out/done/a" "first" "$T/out/videos.list" bash -c "echo a >> $T/log"
    """
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "videos").symlink_to(tmp_path / "elsewhere")
    for expected in (1, 1, 2):
        if expected == 2:
            (tmp_path / "videos" / "new.mp4").touch()
        assert stages(repository, tmp_path, run).returncode == 0
        assert len((tmp_path / "log").read_text().split()) == expected


def test_a_listed_clip_that_changes_repeats_the_stages(repository, tmp_path):
    run = f"""
    python() {{ PYTHONPATH="{repository}" "{sys.executable}" "$@"; }}
    list_videos "$T/clips.csv" "$T/videos.list"
    stage "$T/done/a" "first" "$T/videos.list" bash -c "echo a >> $T/log"
    """
    (tmp_path / "one.mp4").touch()
    (tmp_path / "clips.csv").write_text("path,category,state\none.mp4,fan,stuck\n")
    for expected in (1, 1, 2):
        if expected == 2:
            (tmp_path / "one.mp4").write_text("another recording")
        assert stages(repository, tmp_path, run).returncode == 0
        assert len((tmp_path / "log").read_text().split()) == expected
    (tmp_path / "clips.csv").write_text("path,category,condition\none.mp4,fan,stuck\n")
    refused = stages(repository, tmp_path, run)
    assert refused.returncode == 2 and "error: " in refused.stderr and "line 2: 'one.mp4' has neither" in refused.stderr


def test_a_list_of_clips_is_taken_category_by_category(repository, tmp_path):
    kinds = [f"clips/kind{suffix[1:]}/train/0{suffix.upper()}" for suffix in VIDEO_SUFFIXES]
    for name in ("one.mp4", "two.mp4", "clips/gear/train/three.mp4", "clips/notes/train/three.txt", *kinds):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "clips.csv").write_text("path,category,state\none.mp4,fan,stuck\ntwo.mp4,gear,stuck\n")
    python = f'python() {{ PYTHONPATH="{repository}" "{sys.executable}" "$@"; }}\n'
    assert stages(repository, tmp_path, python + 'clip_categories "$T/clips.csv"').stdout.split() == ["fan", "gear"]
    assert stages(repository, tmp_path, python + 'list_videos "$T/clips.csv" "$T/gear.list" gear').returncode == 0
    assert "two.mp4" in (tmp_path / "gear.list").read_text() and "one.mp4" not in (tmp_path / "gear.list").read_text()
    assert stages(repository, tmp_path, 'clip_categories "$T/clips"').stdout.split() == sorted(
        ["gear", *(f"kind{suffix[1:]}" for suffix in VIDEO_SUFFIXES)])
    assert stages(repository, tmp_path, 'list_videos "$T/clips" "$T/folder.list" gear').returncode == 0
    assert (tmp_path / "folder.list").read_text().startswith("train/three.mp4 0 ")
    refused = stages(repository, tmp_path, python + 'clip_categories "$T/one.mp4"')
    assert refused.returncode == 1 and "error: --videos " in refused.stderr and "is neither a folder nor a list of clips" in refused.stderr


def test_predictions_older_than_the_model_are_made_anew(repository, tmp_path):
    rows, mark = tmp_path / "p.jsonl", tmp_path / "mark"
    mark.touch()
    rows.touch()
    assert stages(repository, tmp_path, 'drop_stale "$T/p.jsonl" "$T/mark"').returncode == 0 and rows.exists()
    subprocess.run(["touch", "-d", "1 hour ago", str(rows)], check=True)
    assert stages(repository, tmp_path, 'drop_stale "$T/p.jsonl" "$T/mark"').returncode == 0 and not rows.exists()


def test_the_micro_batch_is_the_plans_and_is_written_once(repository, tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/bash\necho \"$*\" >> $T/asked\ncat $T/answer\nexit $(cat $T/status)\n")
    fake.chmod(0o755)
    run = 'PATH="$T:$PATH"; stage "$T/done/plan" "finding" "" choose_batch "$T/batch" --config x --set tune=lora'
    (tmp_path / "status").write_text("1")
    (tmp_path / "answer").write_text("")
    assert stages(repository, tmp_path, run).returncode == 2 and not (tmp_path / "batch").exists()
    (tmp_path / "status").write_text("0")
    (tmp_path / "answer").write_text("per_device_train_batch_size=4 gradient_accumulation_steps=4\n")
    for _ in range(2):
        assert stages(repository, tmp_path, run).returncode == 0
        (tmp_path / "answer").write_text("another")
    assert (tmp_path / "batch").read_text() == "per_device_train_batch_size=4 gradient_accumulation_steps=4\n"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 2 and asked[0] == ("-m vlmphys.cli plan --settings --only-batch --config x --set tune=lora "
                                            "--set per_device_train_batch_size=16 gradient_accumulation_steps=1")
    (tmp_path / "answer").write_text("")        # it fits as it is
    assert stages(repository, tmp_path, 'PATH="$T:$PATH"; choose_batch "$T/other" --config x').returncode == 0
    assert (tmp_path / "other").read_text() == "per_device_train_batch_size=16 gradient_accumulation_steps=1\n"


def test_of_one_batch_key_the_other_follows(repository, tmp_path):
    for given, other in (("1", "16"), ("4", "4"), ("16", "1")):
        assert stages(repository, tmp_path, f"other_factor a {given} b").stdout.strip() == other


def multi_node(repository: Path, tmp_path: Path, hostfile: str | None, *arguments: str) -> subprocess.CompletedProcess:
    if hostfile is not None:
        (tmp_path / "hosts").write_text(hostfile)
    return subprocess.run(["bash", "launch/multi_node.sh", "--hostfile", str(tmp_path / "hosts"), *arguments], cwd=repository,
                          capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})


def test_several_machines_are_started_by_deepspeed(repository, packed_folder, tmp_path):
    hosts = "# a cluster\nnode-1 slots=2\n\nnode-2  slots=1 # half of it\n"
    (tmp_path / "a b.yaml").write_text("per_device_train_batch_size: 2\nmax_steps: 9\n")
    arguments = ["--config", str(tmp_path / "a b.yaml"), "--data", str(packed_folder), "--set", "bf16=true", "gradient_accumulation_steps=3"]
    done = multi_node(repository, tmp_path, hosts, "--master-addr", "10.0.0.1", "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    said, batch, steps, command = done.stdout.strip().splitlines()
    assert said == "2 machine(s), 3 ranks" and batch.startswith("global batch: 18 clips = 2 (per_device_train_batch_size) x 3 ")
    assert steps == "steps: 9, 2 an epoch of 20 train clips"
    assert shlex.split(command) == ["deepspeed", "--hostfile", str(tmp_path / "hosts"), "--master_port", "29500",
                                    "--master_addr", "10.0.0.1", "launch/train.py", *arguments]


def test_a_dry_run_refuses_what_the_run_would_refuse_in_the_config(repository, tmp_path):
    done = multi_node(repository, tmp_path, "node-1 slots=2\nnode-2 slots=2\n", "--dry-run", "--set", "learning_rat=1")
    assert done.returncode == 2 and "deepspeed" not in done.stdout
    assert done.stderr == "error: the config: unknown key 'learning_rat' (did you mean 'learning_rate'?)\n"


def test_a_dry_run_before_anything_is_installed_leaves_the_config_unread(repository, tmp_path):
    shutil.copytree(repository / "launch", tmp_path / "launch")
    environment = without_gpu(tmp_path)
    (tmp_path / "hosts").write_text("a slots=2\nb slots=2\n")
    done = subprocess.run([shutil.which("bash"), "launch/multi_node.sh", "--hostfile", str(tmp_path / "hosts"), "--dry-run", "x"],
                          cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "x gradient_accumulation_steps x 4 (the config was not read: nothing is installed yet)" in done.stdout


@pytest.mark.parametrize(("hosts", "arguments", "message"), [
    (None, ["--config", "x"], "is no file: write one line a machine"), ("node-1 slots=8\n", [], "arguments of launch/train.py are needed"),
    ("node-1 8\n", ["x"], "line 1: 'node-1 8' is not 'host slots=GPUs'"), ("a slots=0\n", ["x"], "line 1"),
    ("a slots=2\nb slots=2 c\n", ["x"], "line 2"), ("a slots=2\na slots=2\n", ["x"], "line 2: a stands there twice"),
    ("# none\n", ["x"], "names no machine"), ("a slots=2\n", ["--master-port", "x", "y"], "--master-port is 'x'"),
    ("another-machine slots=2\n", ["x"], "names one machine, another-machine, and this one is")])
def test_a_hostfile_with_a_mistake_is_refused(repository, tmp_path, hosts, arguments, message):
    done = multi_node(repository, tmp_path, hosts, "--dry-run", *arguments)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("error: ") and message in done.stderr


def test_one_machine_must_be_this_one_and_needs_no_ssh(repository, tmp_path):
    for host in ("localhost", platform.node()):
        done = multi_node(repository, tmp_path, f"{host} slots=2\n", "--dry-run", "--set", "seed=1")
        assert done.returncode == 0, done.stderr
        assert shlex.split(done.stdout.splitlines()[-1]) == ["deepspeed", "--num_gpus", "2", "--master_port", "29500", "launch/train.py",
                                                             "--set", "seed=1"]
    # Without ssh it comes as far as the check of the environment.
    done = subprocess.run([shutil.which("bash"), "launch/multi_node.sh", "--hostfile", str(tmp_path / "hosts"), "x"], cwd=repository,
                          capture_output=True, text=True, env=without_gpu(tmp_path))
    assert done.returncode == 2 and "no C++ compiler was found" in done.stderr and "ssh" not in done.stderr


def test_machines_without_pdsh_are_refused(repository, tmp_path):
    environment = without_gpu(tmp_path)
    (tmp_path / "programs" / "ssh").touch(mode=0o755)
    (tmp_path / "hosts").write_text("a slots=2\nb slots=2\n")
    done = subprocess.run([shutil.which("bash"), "launch/multi_node.sh", "--hostfile", str(tmp_path / "hosts"), "x"], cwd=repository,
                          capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "error: pdsh was not found" in done.stderr
