"""Data that is not what was written, or not what the model was packed for: verify.py and the trainer both refuse it, by the file's name."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from launching import load_script

from vlmphys.shard_files import VERSION

pytestmark = pytest.mark.integration


@pytest.fixture
def commands(repository, monkeypatch, capsys):
    """Call verify.py and launch/train.py within this process, which spares the imports; what each says, after each ended as it should."""
    monkeypatch.chdir(repository)
    verify, train = load_script(repository / "data_prep/verify.py"), load_script(repository / "launch/train.py")

    def call(module, status: int, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        capsys.readouterr()
        assert module.main() == status
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return said.out + said.err

    def both(data: Path, model: Path, out: Path) -> tuple[str, str]:
        return (call(verify, 1, "--data", data, "--model", model),
                call(train, 2, "--data", data, "--model", model, "--out", out, "--set", "engine=plain", "max_steps=1"))

    return both


def flip_a_byte(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 255
    path.write_bytes(content)


def newer(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": VERSION + 1}))


@pytest.mark.parametrize("name, damage, words", [
    ("frames/frames-00000.arrow", lambda path: flip_a_byte(path, 0.5), "its bytes are not those that were written"),
    ("dialogues/dialogues-00000.arrow", lambda path: flip_a_byte(path, 0.4), "its bytes are not those that were written"),
    ("frames/frames-00000.arrow", Path.unlink, "is missing"), ("dialogues/dialogues-00000.arrow", Path.unlink, "is missing"),
    ("frames/manifest.json", newer, f"version {VERSION + 1} is not known here"),
    ("dialogues/manifest.json", newer, f"version {VERSION + 1} is not known here")])
def test_damage(commands, packed_folder, tiny_model_folder, tmp_path, name, damage, words):
    data = Path(shutil.copytree(packed_folder, tmp_path / "packed"))
    damage(data / name)
    for said in commands(data, tiny_model_folder, tmp_path / "out"):
        assert f"{data / name}: {words}" in said
    assert not (tmp_path / "out").exists()


def test_another_tokenizer(commands, packed_folder, tmp_path):
    from vlmphys.tiny import build_random, save_model_folder, tiny_config, train_tokenizer
    tokenizer = train_tokenizer(["other words for another model"], 300)
    config = tiny_config(len(tokenizer), image_size=32, vision_hidden=32, vision_layers=2, text_hidden=64, text_layers=2)
    save_model_folder(build_random(config), tokenizer, tmp_path / "model")
    for said in commands(packed_folder, tmp_path / "model", tmp_path / "out"):
        assert f"{packed_folder / 'dialogues'}: was packed with tokenizer_sha256" in said
    assert not (tmp_path / "out").exists()


def test_another_prior(commands, packed_folder, tiny_model_folder, tmp_path):
    """verify.py compares with the priors that it is given. The trainer reads none: what it refuses is a run that was begun on other dialogues."""
    from vlmphys.config import load_config
    from vlmphys.dialogue_packing import DialogueMaker, DialogueSettings, pack_dialogues
    from vlmphys.model import load_tokenizer, read_facts
    from vlmphys.priors import PRIORS_FOLDER, load_priors
    from vlmphys.shards import open_packed
    from vlmphys.train import train
    out, data = tmp_path / "out", Path(shutil.copytree(packed_folder, tmp_path / "packed"))
    settings = {"data": str(data), "model": str(tiny_model_folder), "out": str(out)}
    train(load_config(None, ["engine=plain", "max_steps=1"], settings))
    shutil.rmtree(out / "model")
    (tmp_path / "priors").mkdir()
    text = (PRIORS_FOLDER / "fan.yaml").read_text().replace("component: ", "component: Here ", 1)
    (tmp_path / "priors/fan.yaml").write_text(text)
    packed, tokenizer = open_packed(data), load_tokenizer(str(tiny_model_folder))
    maker = DialogueMaker(read_facts(str(tiny_model_folder), tokenizer), tokenizer, load_priors({"fan", "hinge"}, tmp_path / "priors"), 8,
                          DialogueSettings(tuple(packed.dialogues.meta["variants"])))
    pack_dialogues(packed.frames.states(), packed.split, data, maker)
    verified, trained = commands(data, tiny_model_folder, out)
    assert f"{data / 'dialogues'}: was packed with priors_sha256" in verified
    assert f"belongs to another run: {data / 'dialogues/manifest.json'} is another than it was when the run was begun" in trained
