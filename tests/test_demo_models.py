"""The embedded models: small, loadable by plain open_clip, accurate enough, one under-confident and one over-confident."""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

import clipq
from clipq.calib_data.scenes import SIZE
from clipq.calib_data.synthetic import CLASSNAMES, TEMPLATES, picture
from clipq.evaluate.metrics.calibration import signed_gap
from clipq.evaluate.metrics.detection import auroc
from clipq.evaluate.metrics.ood import energy, mcm

DEMO = Path(clipq.__file__).parent / "engines" / "torch" / "demo"
VARIANTS = ("under", "over")


class _Demo:
    """One embedded model as plain open_clip loads it, with the class embeddings of the set's own templates."""

    def __init__(self, variant):
        import torch

        from clipq.engines.torch.compat import import_open_clip

        name = f"local-dir:{DEMO / variant}"
        self.model, _, self.preprocess = import_open_clip().create_model_and_transforms(name)
        tokenizer = import_open_clip().get_tokenizer(name)
        self.model.eval()
        self.variant, self.scale = variant, self.model.logit_scale.exp().item()
        self.record = json.loads((DEMO / variant / "training.json").read_text())["figures"]
        with torch.inference_mode():
            prompts = [tokenizer([template.format(c=label) for template in TEMPLATES]) for label in CLASSNAMES]
            text = torch.stack([self.model.encode_text(tokens, normalize=True).mean(0) for tokens in prompts])
            self.text = torch.nn.functional.normalize(text, dim=-1)

    @functools.cache  # noqa: B019 - two models for one module of tests
    def cosines(self, variant, count=480):
        """Return cosines ``(count, classes)`` and labels of the first images of a set, through open_clip's own preprocessing."""
        import torch
        from PIL import Image

        labels, images = zip(*(picture(variant, "test", index) for index in range(count)), strict=True)
        with torch.inference_mode():
            batch = torch.stack([self.preprocess(Image.fromarray(image)) for image in images])
            return (self.model.encode_image(batch, normalize=True) @ self.text.T).numpy(), np.array(labels)

    def softmax(self, cosines):
        """Return probabilities in float64."""
        logits = self.scale * cosines.astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module", params=VARIANTS)
def demo(request):
    """Each embedded model in turn."""
    pytest.importorskip("torch")
    return _Demo(request.param)


def test_installed_size_is_at_most_16_megabytes():
    """Both models with everything beside them fit, and the wheel is smaller still because unused token rows are zero."""
    files = [path for path in DEMO.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    weights = [path.read_bytes() for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 2
    assert sum(len(zlib.compress(data, 6)) for data in weights) <= 5_000_000


@pytest.mark.parametrize("variant", VARIANTS)
def test_configuration_is_open_clips_own(variant):
    """The two keys of an open_clip configuration, for images of the size that is drawn."""
    config = json.loads((DEMO / variant / "open_clip_config.json").read_text())
    assert sorted(config) == ["model_cfg", "preprocess_cfg"]
    assert config["preprocess_cfg"]["size"] == [SIZE, SIZE]
    assert config["model_cfg"]["text_cfg"]["vocab_size"] == 49408


def test_accuracy_and_confidence(demo):
    """Top-1 between 70 and 95 %, and a signed gap of at least 3 points to the model's own side."""
    cosines, labels = demo.cosines("scenes", 960)
    probabilities = demo.softmax(cosines)
    correct = probabilities.argmax(axis=1) == labels
    gap = signed_gap(probabilities.max(axis=1), correct)
    assert 0.70 <= correct.mean() <= 0.95
    assert gap <= -0.03 if demo.variant == "under" else gap >= 0.03
    assert abs(correct.mean() - demo.record["scenes"]["top1"]) < 0.04
    assert abs(gap - demo.record["scenes"]["signed_gap"]) < 0.03


def test_confidence_was_trained_not_rescaled(demo):
    """The weights of the towers differ between the two models, not the logit scale alone."""
    state = demo.model.state_dict()
    other = _Demo("over" if demo.variant == "under" else "under").model.state_dict()
    same = [name for name in state if name != "token_embedding.weight" and (state[name] == other[name]).all()]
    assert not same


def test_unseen_scenes_score_lower(demo):
    """Scores separate textures well and unseen shapes and combinations a little."""
    inside, _ = demo.cosines("scenes")
    for variant, least in (("scenes-near", 0.52), ("scenes-far", 0.75)):
        outside, _ = demo.cosines(variant)
        best = max(auroc(mcm(inside), mcm(outside)), auroc(energy(demo.scale * inside), energy(demo.scale * outside)))
        assert least < best < 1


@pytest.mark.parametrize("axis", ["noise", "shift", "spurious"])
def test_robustness_axes_cost_accuracy(demo, axis):
    """Each axis is harder than the very scenes it changes, and far from chance."""
    (plain, labels), (changed, same) = demo.cosines("scenes"), demo.cosines(f"scenes-{axis}")
    before, after = ((cosines.argmax(axis=1) == labels).mean() for cosines in (plain, changed))
    assert (labels == same).all()
    assert 0.2 < after < before - 0.01


def test_class_embeddings_stand_apart(demo):
    """No two classes have nearly the same embedding, and all are finite."""
    similarity = (demo.text @ demo.text.T).numpy()
    assert np.isfinite(similarity).all()
    assert (similarity - 2 * np.eye(len(CLASSNAMES))).max() < 0.995
