"""The preprocessing equals open_clip's evaluation transform, bit for bit."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.table import open_source
from clipq.engines.torch.compat import import_open_clip
from clipq.errors import DataError, UsageError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [(32, 32), (24, 40), (40, 24), (31, 31)]
MODES = ["RGB", "L", "LA", "RGBA", "P", "CMYK", "1", "I;16", "I", "F", "YCbCr"]


def reference(preprocess: Preprocess, image: Image.Image) -> np.ndarray:
    """Return what open_clip makes of an image."""
    transform = import_open_clip().transform
    config = transform.PreprocessCfg(
        size=preprocess.size,
        mean=preprocess.mean,
        std=preprocess.std,
        interpolation=preprocess.interpolation,
        resize_mode=preprocess.resize_mode,
        fill_color=preprocess.fill_color,
    )
    return transform.image_transform_v2(config, is_train=False)(image).numpy()


def ours(preprocess: Preprocess, image: Image.Image) -> np.ndarray:
    """Return what we make of it."""
    return preprocess.normalise(preprocess.pixels_u8(image)[None])[0]


def noise(width: int, height: int, mode: str, seed: int = 0) -> Image.Image:
    """Return an image of noise in any of Pillow's modes."""
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width), np.uint16))
    if mode in ("I", "F"):
        return Image.fromarray(rng.integers(-300, 70000, (height, width)).astype(np.int32 if mode == "I" else np.float32))
    rgba = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8))
    return rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode) if mode != "LA" else rgba.convert("LA")


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.sampled_from(SIZES),
    resize_mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    mode=st.sampled_from(MODES),
    fill=st.sampled_from([0, 127]),
)
def test_equals_open_clip_on_noise(
    width: int, height: int, size: tuple[int, int], resize_mode: Any, interpolation: Any, mode: str, fill: int
) -> None:
    """Every mode, aspect ratio and size gives exactly open_clip's pixels, or is refused by both."""
    preprocess = Preprocess(size, resize_mode, interpolation, MEAN, STD, fill)
    image = noise(width, height, mode)
    try:
        expected = reference(preprocess, image)
    except (ValueError, TypeError, OSError):
        with pytest.raises((DataError, ValueError, TypeError, OSError)):
            ours(preprocess, image)
        return
    np.testing.assert_array_equal(ours(preprocess, image), expected, strict=True)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(("width", "height"), [(3000, 2000), (1, 500), (333, 5), (224, 224), (225, 224), (223, 640)])
def test_equals_open_clip_at_full_size(resize_mode: Any, width: int, height: int) -> None:
    """Large, narrow and just fitting images agree at the size of ViT-B/32."""
    preprocess = Preprocess((224, 224), resize_mode, "bicubic", MEAN, STD)
    image = noise(width, height, "RGB")
    if resize_mode == "longest" and (width, height) == (1, 500):
        with pytest.raises(DataError, match="too narrow"):
            ours(preprocess, image)
        return
    np.testing.assert_array_equal(ours(preprocess, image), reference(preprocess, image), strict=True)


@pytest.mark.parametrize("transparency", [b"\x00\x80\xff", 1])
def test_palette_with_transparency(transparency: bytes | int) -> None:
    """A transparent palette gives open_clip's pixels, without Pillow's warning and without touching the caller's image."""
    stream = io.BytesIO()
    noise(50, 40, "P").save(stream, "PNG", transparency=transparency)
    image = Image.open(stream)
    for resize_mode in ("shortest", "squash"):
        preprocess = Preprocess((40, 50) if resize_mode == "squash" else (32, 32), resize_mode, "bicubic", MEAN, STD)
        pixels = ours(preprocess, image)
        assert "transparency" in image.info
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_args, **_kwargs: None)
            np.testing.assert_array_equal(pixels, reference(preprocess, image), strict=True)


def test_exif_orientation_is_not_applied() -> None:
    """A photograph that says it lies on its side is taken as it is stored, as in open_clip."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    noise(50, 40, "RGB").save(stream, "JPEG", exif=exif)
    preprocess = Preprocess((32, 32), "squash", "bilinear", MEAN, STD)
    image = Image.open(stream)
    assert image.getexif()[0x0112] == 6
    np.testing.assert_array_equal(ours(preprocess, image), reference(preprocess, image), strict=True)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["imagenette", "dtd10", "tiny_imagenet", "cifar10", "pneumoniamnist"])
def test_equals_open_clip_on_photographs(shared_data: Path, name: str) -> None:
    """Photographs of every kind give exactly open_clip's pixels in every resize mode."""
    source = open_source(f"wds:{shared_data / name}")
    samples = list(source.read(range(0, len(source), len(source) // 20)))
    for resize_mode in ("shortest", "longest", "squash"):
        preprocess = Preprocess((224, 224), resize_mode, "bicubic", MEAN, STD)
        for sample in samples:
            image = Image.open(io.BytesIO(sample.data))
            np.testing.assert_array_equal(ours(preprocess, image), reference(preprocess, image), strict=True)


@pytest.mark.parametrize(("width", "height"), [(1, 300_000), (1_000_000, 2)])
def test_a_strip_is_refused_before_it_grows(width: int, height: int) -> None:
    """An image that would need gigabytes once resized is an error of that image."""
    with pytest.raises(DataError, match="too narrow"):
        Preprocess((224, 224), "shortest", "bicubic", MEAN, STD).pixels_u8(Image.new("L", (width, height)))


def test_normalise_writes_where_it_is_told() -> None:
    """The result is the given array, for every grey level."""
    batch = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (2, 3, 16, 16))
    preprocess = Preprocess((16, 16), "squash", "bilinear", MEAN, STD)
    out = np.empty(batch.shape, np.float32)
    assert preprocess.normalise(batch, out=out) is out
    expected = (batch.astype(np.float64) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_json_round_trip(tmp_path: Path) -> None:
    """What is written can be read, equal and with the same hash; another value has another hash."""
    preprocess = Preprocess((224, 200), "longest", "bilinear", MEAN, STD, 7)
    path = tmp_path / "preprocess.json"
    path.write_text(json.dumps(preprocess.to_json()))
    assert Preprocess.from_file(path) == preprocess
    assert Preprocess.from_file(path).sha256() == preprocess.sha256()
    assert Preprocess.from_json({**preprocess.to_json(), "fill_color": 8}).sha256() != preprocess.sha256()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize_mod": "squash"}, "Did you mean 'resize_mode'"),
        ({"resize_mode": "shortes"}, "Did you mean 'shortest'"),
        ({"interpolation": "bicubi"}, "Did you mean 'bicubic'"),
        ({"size": [224]}, "expected height and width"),
        ({"size": 224}, "wrong type"),
        ({"mean": ["a", 1, 1]}, "wrong mean or std"),
        ({"std": [0, 1, 1]}, "std > 0"),
        ({"fill_color": 300}, "fill colour"),
    ],
)
def test_wrong_values_are_refused(change: dict[str, Any], message: str) -> None:
    """An unknown key, name or value is one line with exit code 2."""
    value = {**Preprocess((224, 224), "shortest", "bicubic", MEAN, STD).to_json(), **change}
    with pytest.raises(UsageError, match=message) as caught:
        Preprocess.from_json(value)
    assert caught.value.exit_code == 2


def test_a_missing_key_or_file_is_refused(tmp_path: Path) -> None:
    """Nothing is assumed: a missing key, a missing file and a broken file are errors."""
    value = Preprocess((224, 224), "shortest", "bicubic", MEAN, STD).to_json()
    del value["std"]
    with pytest.raises(UsageError, match="no std"):
        Preprocess.from_json(value)
    with pytest.raises(UsageError, match="cannot read"):
        Preprocess.from_file(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UsageError, match="expected a JSON object"):
        Preprocess.from_file(tmp_path / "list.json")
