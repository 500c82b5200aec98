"""Trains the embedded models `demo:under` and `demo:over` on drawn scenes; see README.md beside this file."""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from clipq.calib_data.dice import Dice
from clipq.calib_data.scenes import BACKGROUNDS, POSITIONS, Scene, draw
from clipq.calib_data.synthetic import CLASSNAMES, TEMPLATES, picture, scene_of, usual_background
from clipq.engines.torch.compat import import_open_clip
from clipq.evaluate.metrics.calibration import ece, signed_gap
from clipq.evaluate.metrics.detection import auroc
from clipq.evaluate.metrics.ood import energy, mcm

open_clip = import_open_clip()

MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 40, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 3},
}
PREPROCESS = {
    "size": [40, 40],
    "mode": "RGB",
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
LAYOUTS = ("a {c} {p}.", "a photo of a {c} {p}.", "a {c} on a {b} background.", "a photo of a {c} {p} on a {b} background.")
CLASSES = len(CLASSNAMES)
# steps, peak learning rate, images per class (None: every image is new), share of captions shuffled, share of scenes moved to the
# background that is usual for their shape (beyond the half that stand there anyway)
PLANS = {
    "base": {"steps": 5000, "rate": 1e-3, "images_per_class": None, "wrong_captions": 0.0, "usual_background": 0.0},
    "under": {"steps": 800, "rate": 5e-4, "images_per_class": None, "wrong_captions": 0.06, "usual_background": 0.9},
    "over": {"steps": 800, "rate": 5e-4, "images_per_class": 150, "wrong_captions": 0.0, "usual_background": 0.9},
}


class Vocabulary:
    """The few tokens that captions use, renumbered in order; the other rows of the table would get no gradient."""

    def __init__(self) -> None:
        self._tokenize = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])
        words = [*CLASSNAMES, *POSITIONS, *(text.format(c="", p="", b=f"{b}") for text in (*TEMPLATES, *LAYOUTS) for b in BACKGROUNDS)]
        self.used = torch.unique(self._tokenize(words))

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Return compact token ids, ``(n, context length)``."""
        tokens = self._tokenize(texts)
        compact = torch.searchsorted(self.used, tokens)
        if not torch.equal(self.used[compact], tokens):
            raise ValueError("a caption uses a token outside the vocabulary")
        return compact

    def widen(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the state dict with the full token table, zero where no caption reaches."""
        narrow = state["token_embedding.weight"]
        wide = torch.zeros(MODEL["text_cfg"]["vocab_size"], narrow.shape[1], dtype=narrow.dtype)
        wide[self.used] = narrow
        wide[0] = 0  # padding: the causal mask hides it
        return {**state, "token_embedding.weight": wide}

    def narrow(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the state dict with the rows of the used tokens only."""
        return {**state, "token_embedding.weight": state["token_embedding.weight"][self.used]}


def new_model(vocabulary: Vocabulary) -> torch.nn.Module:
    """Return an open_clip CLIP with the compact vocabulary and random weights."""
    text = {**MODEL["text_cfg"], "vocab_size": len(vocabulary.used)}
    return open_clip.model.CLIP(MODEL["embed_dim"], MODEL["vision_cfg"], text)


def training_scene(index: int, usual: float) -> Scene:
    """Return training scene ``index``, moved to the usual background of its shape in the share ``usual`` of all cases."""
    scene = scene_of(index % CLASSES, f"scenes/train/{index}")
    if Dice(f"usual/{index}").below(256) < usual * 256:
        scene = replace(scene, background=usual_background(scene.shape))
    return scene


def caption(index: int, scene: Scene) -> str:
    """Return one of several captions of training image ``index``."""
    dice = Dice(f"caption/{index}")
    text = dice.pick(LAYOUTS if dice.below(5) == 0 else TEMPLATES)  # the background is a short cut: name it seldom
    return text.format(c=CLASSNAMES[index % CLASSES], p=POSITIONS[scene.position], b=scene.background)


def normalise(drawn: list[np.ndarray]) -> torch.Tensor:
    """Return normalised pixels ``(n, 3, 40, 40)``."""
    images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(PREPROCESS[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (images - mean) / std


def batches(plan: dict[str, Any], seed: int, start: int) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """Yield images and captions of every class once, so that no two captions of a contrastive loss name the same class."""
    rng = np.random.default_rng(seed)
    for step in range(plan["steps"]):
        turns = rng.integers(plan["images_per_class"], size=CLASSES) if plan["images_per_class"] else np.full(CLASSES, step)
        indices = (start + turns * CLASSES + np.arange(CLASSES)).tolist()
        scenes = [training_scene(index, plan["usual_background"]) for index in indices]
        texts = [caption(index, scene) for index, scene in zip(indices, scenes, strict=True)]
        wrong = np.flatnonzero(rng.random(CLASSES) < plan["wrong_captions"])
        moved = {here: texts[there] for here, there in zip(wrong, rng.permutation(wrong), strict=True)}
        yield normalise([draw(scene) for scene in scenes]), [moved.get(place, text) for place, text in enumerate(texts)]


def train(model: torch.nn.Module, vocabulary: Vocabulary, plan: dict[str, Any], seed: int, start: int) -> None:
    """Train in place: open_clip's contrastive loss, AdamW, warm-up and cosine decay."""
    matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and "embedding" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim <= 1 or "embedding" in name]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98))
    loss_of = open_clip.ClipLoss()
    began = time.monotonic()
    for step, (images, texts) in enumerate(batches(plan, seed, start)):
        rate = plan["rate"] * min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / plan["steps"]))
        for group in optimizer.param_groups:
            group["lr"] = rate
        image, text, scale = model(images, vocabulary(texts))
        loss = loss_of(image, text, scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 50 == 0 or step + 1 == plan["steps"]:
            print(f"step {step} loss {loss.item():.3f} scale {scale.item():.1f} {time.monotonic() - began:.0f} s", flush=True)


@torch.no_grad()
def cosines(model: torch.nn.Module, vocabulary: Vocabulary, variant: str, split: str, count: int) -> tuple[torch.Tensor, np.ndarray]:
    """Return image-class cosines ``(n, classes)`` with the set's own template ensemble, and labels."""
    text = torch.stack(
        [model.encode_text(vocabulary([t.format(c=name) for t in TEMPLATES]), normalize=True).mean(0) for name in CLASSNAMES]
    )
    text = torch.nn.functional.normalize(text, dim=-1)
    found, labels = [], []
    for first in range(0, count, 500):
        part, drawn = zip(*(picture(variant, split, index) for index in range(first, min(first + 500, count))), strict=True)
        found.append(model.encode_image(normalise(list(drawn)), normalize=True) @ text.T)
        labels.extend(part)
    return torch.cat(found), np.array(labels)


def figures(cosine: torch.Tensor, labels: np.ndarray, scale: float) -> dict[str, float]:
    """Return top-1, mean confidence, signed gap (confidence - accuracy), ECE (15 bins of equal width) and NLL."""
    logits = (scale * cosine).double()
    confidence, guess = (x.numpy() for x in logits.softmax(-1).max(-1))
    correct = guess == labels
    nll = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
    values = {"top1": correct.mean(), "confidence": confidence.mean(), "signed_gap": signed_gap(confidence, correct)}
    return {name: round(float(value), 4) for name, value in (values | {"ece15": ece(confidence, correct), "nll": nll}).items()}


def measure(model: torch.nn.Module, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the figures of every drawn data set."""
    model.eval()
    scale = model.logit_scale.exp().item()
    inside, labels = cosines(model, vocabulary, "scenes", "test", 4000)
    record: dict[str, Any] = {"logit_scale": round(scale, 3), "scenes": figures(inside, labels, scale)}
    for axis in ("noise", "shift", "spurious"):
        record[f"scenes-{axis}"] = figures(*cosines(model, vocabulary, f"scenes-{axis}", "test", 2000), scale)
    inside = inside.numpy()
    for distance in ("near", "far"):
        outside = cosines(model, vocabulary, f"scenes-{distance}", "test", 2000)[0].numpy()
        record[f"scenes-{distance}"] = {
            "auroc_mcm": round(auroc(mcm(inside), mcm(outside)), 4),
            "auroc_energy": round(auroc(energy(scale * inside), energy(scale * outside)), 4),
        }
    return record


def main() -> None:
    """Train one variant and write its configuration, weights and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--variant", choices=sorted(PLANS), required=True)
    parser.add_argument("--base", type=Path, help="folder of a trained base; without it the base is trained first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    began = time.monotonic()
    vocabulary = Vocabulary()
    model = new_model(vocabulary)
    if arguments.base:
        model.load_state_dict(vocabulary.narrow(load_file(arguments.base / "open_clip_model.safetensors")))
    else:
        train(model, vocabulary, PLANS["base"], arguments.seed, start=0)
    if arguments.variant != "base":
        train(model, vocabulary, PLANS[arguments.variant], arguments.seed + 1, start=600_000)
    write(arguments, model, vocabulary, time.monotonic() - began)


def write(arguments: argparse.Namespace, model: torch.nn.Module, vocabulary: Vocabulary, seconds: float) -> None:
    """Write configuration, FP16 weights and the record measured with exactly those weights."""
    half = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    model.load_state_dict(half)
    record = {
        "variant": arguments.variant,
        "plan": {name: PLANS[name] for name in dict.fromkeys(("base", arguments.variant))},
        "seed": arguments.seed,
        "seconds": round(seconds),
        "threads": arguments.threads,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "open_clip": open_clip.__version__},
        "figures": measure(model, vocabulary),
    }
    print(json.dumps(record, indent=2))
    arguments.output.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    weights = arguments.output / "open_clip_model.safetensors"
    save_file(vocabulary.widen(half), weights, {"format": "pt"})
    weights.chmod(0o644)
    (arguments.output / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (arguments.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
