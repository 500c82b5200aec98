"""Golden tensors and pictures for the toy bundle, as an export leaves them: the FP32 graphs stand for PyTorch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from toy_bundle import CONTEXT, MODEL, SIZE, make_toy_bundle, rewrite_manifest, words

from clipq.artifact import Bundle
from clipq.calib_data.decoders import decoder_versions
from clipq.calib_data.preprocess import Preprocess
from clipq.engines.golden import PICTURE_TENSORS, PICTURES, PICTURES_SCHEMA, TENSORS, Golden
from clipq.export.golden import draw_images, write_arrays, write_golden
from clipq.export.parity import measure
from clipq.export.pictures import PICTURE_NAMES, encode_pictures
from clipq.files import write_json


def run_graph(path: Path, batch: np.ndarray) -> np.ndarray:
    """Return what ONNX Runtime makes of a batch."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


def make_golden_bundle(folder: Path, *, pictures: bool = True, parity: bool = True) -> Bundle:
    """Write the toy bundle with golden tensors, what the export measured of each graph and, where asked, golden pictures."""
    bundle = make_toy_bundle(folder)
    preprocess = Preprocess.from_file(folder / "preprocess.json")
    pixels = preprocess.normalise(draw_images(preprocess))
    tokens = np.random.default_rng(3).integers(1, len(words()), (8, CONTEXT)).astype(np.int32)
    paths = {tower: folder / f"towers/{tower}.fp32.onnx" for tower in ("image", "text")}
    golden = Golden(pixels, tokens, run_graph(paths["image"], pixels), run_graph(paths["text"], tokens))
    write_golden(folder / TENSORS, golden)
    said: dict[str, Any] = {"parity": {tower: measure(paths[tower], golden.inputs(tower), golden.outputs(tower)) for tower in paths}}
    for engine_id, entry in bundle.manifest.engines.items():
        facts = {name: {"parity": measure(folder / name, pixels, golden.image_embedding)} for name in [entry.towers["image"]]}
        write_json(folder / f"engines/{engine_id}/engine.json", {"engine": engine_id, "graphs": facts if parity else {}})
    if pictures:
        _write_pictures(folder, preprocess, paths["image"])
    return rewrite_manifest(folder, bundle.manifest.engines, MODEL, said if parity else {})


def _write_pictures(folder: Path, preprocess: Preprocess, graph: Path) -> None:
    (folder / "golden").mkdir()
    encoded = encode_pictures(SIZE, SIZE)
    for name, data in zip(PICTURE_NAMES, encoded, strict=True):
        (folder / name).write_bytes(data)
    pixels = preprocess.normalise(np.stack([preprocess.pixels_u8(Image.open(io.BytesIO(data))) for data in encoded]))
    write_arrays(folder / PICTURE_TENSORS, {"pixels": pixels, "image_embedding": run_graph(graph, pixels)})
    write_json(folder / PICTURES, {"schema": PICTURES_SCHEMA, "pictures": list(PICTURE_NAMES), "decoder": decoder_versions()})
