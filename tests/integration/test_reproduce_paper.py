"""launch/reproduce_paper.sh with stand-ins for python and deepspeed: which commands it starts, in which order, and which a second run leaves out."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

# Writes down its arguments and makes the files that the script looks at; `refuse` holds a word: a command with it among its arguments fails.
STAND_IN = """#!/bin/bash
if [ "${1:-}" = -c ]; then echo 29501; exit; fi
echo "$(basename "$0") $*" >> "$LOG"
if [ -s "$REFUSE" ] && [[ " $* " == *" $(cat "$REFUSE") "* ]]; then echo "error: refused" >&2; exit 2; fi
out=""
while [ $# -gt 0 ]; do [ "$1" != --out ] || out="$2"; script="${script:-$1}"; shift; done
case "$script" in
    */split.py) mkdir -p "$(dirname "$out")"; echo split > "$out" ;;
    */predict.py) mkdir -p "$(dirname "$out")"; echo row > "$out" ;;
    */pack.py) [[ "$(tail -n 1 "$LOG")" == *--check* ]] || { mkdir -p "$out"; echo > "$out/frames"; } ;;
    */simulate.py) mkdir -p "$out/fan/train" "$out/gear/train"; touch "$out/fan/train/0.mp4" "$out/gear/train/0.mp4" ;;
esac
"""


@pytest.fixture
def paper(repository, tmp_path):
    """Runs the script in a copy of launch/ whose environment is the stand-ins; gives status, the commands that were started, and stderr."""
    shutil.copytree(repository / "launch", tmp_path / "r/launch")
    (tmp_path / "r/launch/environment.sh").write_text('fail() { echo "error: $*" >&2; exit 2; }\nensure_environment() { :; }\n')
    (tmp_path / "bin").mkdir()
    for name in ("python", "deepspeed"):
        (tmp_path / "bin" / name).write_text(STAND_IN)
        (tmp_path / "bin" / name).chmod(0o755)
    log, refuse = tmp_path / "log", tmp_path / "refuse"

    def run(*arguments: str, refused: str = "") -> tuple[int, list[str], str]:
        log.write_text("")
        refuse.write_text(refused)
        done = subprocess.run(["bash", "launch/reproduce_paper.sh", *arguments], cwd=tmp_path / "r", capture_output=True, text=True,
                              env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "LOG": str(log), "REFUSE": str(refuse)})
        return done.returncode, log.read_text().splitlines(), done.stderr

    return run


def videos(tmp_path: Path, *categories: str) -> Path:
    for category in categories:
        (tmp_path / "videos" / category / "train").mkdir(parents=True)
        (tmp_path / "videos" / category / "train/0.mp4").touch()
    return tmp_path / "videos"


def short(commands: list[str]) -> list[str]:
    """Each command as its script and the folder below runs/paper/ that it works in, and the variant where there is one."""
    found = []
    for command in commands:
        script = re.search(r"(\w+)\.py", command).group(1) + (" --check" if "--check" in command else "")
        out = re.findall(r"--out (?:runs/paper/)?(\S+)", command)[-1]
        found.append(f"{script} {out}")
    return found


VARIANTS = ("no_physics", "single_turn", "multi_turn")


def prepared(folder: str) -> list[str]:
    return [f"split {folder}/split.json", f"pack {folder}/packed"]


def experiment(folder: str, variants: tuple[str, ...] = VARIANTS) -> list[str]:
    runs = [line for variant in variants for line in (f"train {folder}/{variant}", f"predict {folder}/{variant}/predictions.jsonl")]
    return [*runs, f"score {folder}/scores"]


def test_one_model_for_all_and_a_seed_that_is_added_later(paper):
    status, commands, error = paper("--seeds", "2")
    assert status == 0, error
    assert short(commands) == ["simulate videos", *prepared("seed_0"), *prepared("seed_1"), *experiment("seed_0"), *experiment("seed_1"),
                               "paper_tables tables"]
    (train,) = [command for command in commands if "--out runs/paper/seed_1/multi_turn --set" in command]
    assert train == ("deepspeed --num_gpus 1 --master_port 29501 launch/train.py --config launch/recipes/paper_tiny.yaml "
                     "--data runs/paper/seed_1/packed --model tiny --variant multi_turn --out runs/paper/seed_1/multi_turn --set seed=1")
    assert "--seeds runs/paper/seed_0 runs/paper/seed_1" in commands[-1] and not any("--categories" in command for command in commands)
    assert short(paper("--seeds", "2")[1]) == ["paper_tables tables"]
    assert short(paper("--seeds", "3")[1]) == [*prepared("seed_2"), *experiment("seed_2"), "paper_tables tables"]


def test_a_model_for_each_category_is_prepared_before_any_is_trained(paper, tmp_path):
    root = videos(tmp_path, "fan", "gear")
    (root / "notes").mkdir()
    (root / "notes/readme.txt").touch()
    arguments = ("--videos", str(root), "--per-category", "--seeds", "2", "--variants", "multi_turn")
    status, commands, error = paper(*arguments)
    assert status == 0, error
    models = [f"seed_{seed}/{category}" for seed in range(2) for category in ("fan", "gear")]
    assert short(commands) == ["split split.json", "pack --check packed", *(line for model in models for line in prepared(model)),
                               *(line for model in models for line in experiment(model, ("multi_turn",))), "paper_tables tables"]
    assert [command.rpartition(" --categories ")[2] for command in commands if "split.py" in command and "seed_1/" in command] == ["fan", "gear"]
    trainings = [command for command in commands if "train.py" in command]
    assert len(trainings) == 4 and all(command.endswith(" max_steps=200") for command in trainings)
    assert short(paper(*arguments)[1]) == ["paper_tables tables"]
    (root / "gear/train/1.mp4").touch()
    again = [line for line in short(paper(*arguments)[1]) if "fan" in line]
    assert again == [], "another category's clip repeats nothing"


def test_extracted_frames_have_models_of_their_own_too(paper, tmp_path):
    for category in ("fan", "gear"):
        (tmp_path / "videos" / category / "test/frames/0000_x_stuck").mkdir(parents=True)
    (tmp_path / "videos/notes/2026").mkdir(parents=True)
    status, commands, error = paper("--videos", str(tmp_path / "videos"), "--per-category", "--variants", "multi_turn")
    assert status == 0, error
    assert [line for line in short(commands) if line.startswith("pack seed")] == ["pack seed_0/fan/packed", "pack seed_0/gear/packed"]


def test_what_one_says_of_the_length_takes_the_place_of_200_updates(paper, tmp_path):
    root = videos(tmp_path, "fan")
    _, commands, _ = paper("--videos", str(root), "--per-category", "--variants", "multi_turn", "--set", "num_train_epochs=3")
    (training,) = [command for command in commands if "train.py" in command]
    assert training.endswith(" --set seed=0 num_train_epochs=3")


def test_cards_share_the_batch_and_priors_reach_every_command(paper, tmp_path):
    root = videos(tmp_path, "fan")
    (tmp_path / "priors").mkdir()
    priors = str(tmp_path / "priors")
    status, commands, error = paper("--videos", str(root), "--gpus", "4", "--model", "a/b", "--variants", "multi_turn", "--priors", priors)
    assert status == 0, error
    (training,) = [command for command in commands if "train.py" in command]
    assert "--num_gpus 4 " in training and "launch/recipes/paper.yaml" in training
    assert training.endswith(" --set seed=0 per_device_train_batch_size=1 gradient_accumulation_steps=4")
    assert ["pack.py", "score.py"] == [re.search(r"\w+\.py", command).group(0) for command in commands if f"--priors {priors}" in command]


@pytest.mark.parametrize("refused", ["--check", "split.json", "runs/paper/seed_1/gear/split.json"])
def test_a_refused_input_leaves_the_folder_to_the_corrected_command(paper, tmp_path, refused):
    """Without a prior, say: the corrected command has other settings, and nothing but splits was made."""
    root = videos(tmp_path, "fan", "gear")
    (tmp_path / "priors").mkdir()
    arguments = ("--videos", str(root), "--per-category", "--seeds", "2")
    refused = "runs/paper/split.json" if refused == "split.json" else refused
    status, commands, error = paper(*arguments, refused=refused)
    assert status == 2 and not any("train.py" in command for command in commands)
    if refused.endswith("gear/split.json"):
        assert "run the same command again, which goes on from there" in error     # other categories are packed already
    else:
        assert "run the same or the corrected command again" in error and not (tmp_path / "r/runs/paper").exists()
        assert paper(*arguments, "--priors", str(tmp_path / "priors"))[0] == 0


def test_paths_with_a_blank_are_refused_before_anything_is_written(paper, tmp_path):
    root = videos(tmp_path, "push button")
    assert paper("--videos", str(root), "--per-category")[::2] == (
        2, "error: the category 'push button' holds a blank: rename its folder, or leave --per-category out\n")
    recipe = tmp_path / "my recipe.yaml"
    recipe.touch()
    status, commands, error = paper("--videos", str(root), "--recipe", str(recipe))
    assert status == 2 and f"--recipe '{recipe}' holds a blank" in error and commands == []
    assert not (tmp_path / "r/runs").exists()
    assert paper("--videos", str(root))[0] == 0


def test_a_seed_added_with_fewer_variants_keeps_those_of_the_others(paper, tmp_path):
    root = videos(tmp_path, "fan")
    arguments = ("--videos", str(root), "--seeds")
    assert paper(*arguments, "1")[0] == 0
    status, commands, error = paper(*arguments, "2", "--variants", "no_physics")
    assert status == 0, error
    assert short(commands) == [*prepared("seed_1"), *experiment("seed_1", ("no_physics",)), "paper_tables tables"], "seed_0 is not scored again"
    (root / "fan/train/1.mp4").touch()
    scorings = [command for command in paper(*arguments, "1", "--variants", "no_physics")[1] if "score.py" in command]
    assert len(scorings) == 1 and "no_physics" in scorings[0] and "multi_turn" not in scorings[0], "models of other clips are no longer scored"


@pytest.mark.parametrize("more", [(), ("--per-category",)])
def test_a_split_that_is_refused_is_told_in_options_of_this_script(paper, tmp_path, more):
    split = "runs/paper/split.json" if more else "runs/paper/seed_0/split.json"
    status, _, error = paper("--videos", str(videos(tmp_path, "fan")), *more, refused=split)
    assert status == 2 and "failed; --per-anomaly and --ratio above are --anomalies here; correct this" in error
    assert "--per-anomaly" not in paper("--videos", str(tmp_path / "videos"), refused="runs/paper/seed_0/fan/packed" if more else "--model")[2]


@pytest.mark.parametrize(("model", "message"), [
    ("tinny", "--model 'tinny' (did you mean 'tiny'?): give 'tiny', a Hugging Face Video-LLaVA folder, or a hub id like org/name"),
    ("llava", "--model 'llava': give 'tiny'"), ("./models/none", "--model './models/none': no such folder"),
    ("/no/such/model", "--model '/no/such/model': no such folder")])
def test_a_model_that_is_none_is_refused_before_the_environment_is_made(paper, tmp_path, model, message):
    (tmp_path / "r/launch/environment.sh").write_text('fail() { echo "error: $*" >&2; exit 2; }\nensure_environment() { touch environment; }\n')
    status, commands, error = paper("--model", model)
    assert status == 2 and error.startswith(f"error: {message}") and commands == [] and not (tmp_path / "r/environment").exists()


def test_a_second_run_into_one_folder_is_refused_at_any_stage(paper, tmp_path):
    root = videos(tmp_path, "fan")
    assert paper("--videos", str(root), "--variants", "multi_turn")[0] == 0
    handle = os.open(tmp_path / "r/runs/paper", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        status, commands, error = paper("--videos", str(root))
    finally:
        os.close(handle)
    assert (status, commands) == (2, []) and error.endswith(
        "error: runs/paper: another run of this script is writing into this folder; wait for it, or give another --out\n")
    assert paper("--videos", str(root))[0] == 0


def test_its_help_says_where_it_installs(paper):
    done = subprocess.run(["bash", "launch/reproduce_paper.sh", "--help"], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and "It makes .venv in the repository" in done.stdout
