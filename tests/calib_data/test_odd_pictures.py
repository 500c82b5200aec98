"""Odd and hostile picture files: what each becomes on its way through the decoding pipeline."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from odd_pictures import READABLE, bomb, declared
from PIL import Image

from clipq.calib_data.decoders import decoder_versions
from clipq.calib_data.folder import open_folder
from clipq.calib_data.index import build_index
from clipq.calib_data.pipeline import Batch, batches
from clipq.calib_data.preprocess import Preprocess
from clipq.engines.torch.compat import import_open_clip

SIDE = 20_000
LIMIT_BYTES = 96 << 20  # what reading a declared giant may add to the memory of a process; decoded it would be 400 MB and more


def read(folder: Path, files: dict[str, bytes], preprocess: Preprocess) -> Batch:
    """Write files among 100 plain ones and return the only batch that holds them all."""
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), (10, 20, 30)).save(stream, "PNG")
    for name, data in {**files, **{f"z{number}.png": stream.getvalue() for number in range(100)}}.items():
        (folder / name).write_bytes(data)
    source = open_folder(str(folder), None)
    (batch,) = batches(source, build_index(source), preprocess, batch_size=len(source), workers=2)
    return batch


def open_clips(preprocess: Preprocess, data: bytes) -> np.ndarray:
    """Return the pixels that open_clip's evaluation transform makes of a file, opened as its readers do."""
    transform = import_open_clip().transform
    config = transform.PreprocessCfg(
        size=preprocess.size,
        mean=preprocess.mean,
        std=preprocess.std,
        interpolation=preprocess.interpolation,
        resize_mode=preprocess.resize_mode,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on transparent palettes and broken EXIF
        return transform.image_transform_v2(config, is_train=False)(Image.open(io.BytesIO(data))).numpy()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # as a program has it; pytest makes errors of warnings
@pytest.mark.parametrize("kind", READABLE)
def test_an_odd_picture_becomes_what_open_clip_makes_of_it(tmp_path: Path, preprocess: Preprocess, kind: str) -> None:
    """Rotation that is only said, colour spaces, depths, palettes, alpha and animations: open_clip's pixels, bit for bit, none skipped."""
    data = READABLE[kind]()
    batch = read(tmp_path, {"a.img.png": data}, preprocess)
    assert not batch.skipped
    np.testing.assert_array_equal(batch.pixels[0], open_clips(preprocess, data), strict=True)


@pytest.mark.parametrize("kind", [name for name in READABLE if name.startswith("animated")])
def test_of_an_animation_the_first_picture_counts(tmp_path: Path, preprocess: Preprocess, kind: str) -> None:
    """An animated file has several pictures, and the pixels are those of the first one alone."""
    data = READABLE[kind]()
    picture = Image.open(io.BytesIO(data))
    assert picture.n_frames == 3
    first = preprocess.normalise(preprocess.pixels_u8(picture.copy())[None])[0]
    picture.seek(2)
    last = preprocess.normalise(preprocess.pixels_u8(picture.copy())[None])[0]
    found = read(tmp_path, {"a.png": data}, preprocess).pixels[0]
    np.testing.assert_array_equal(found, first)
    assert not np.array_equal(found, last)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("zero bytes", "empty or cannot be read"),
        ("text", "cannot identify"),
        ("cut JPEG", "truncated"),
        ("cut head", ""),
        ("whole PNG", "exceeds limit"),
        *((name, "pixels") for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM")),
    ],
)
def test_what_cannot_be_read_is_skipped_with_a_reason(
    tmp_path: Path, preprocess: Preprocess, image: Callable[..., bytes], kind: str, reason: str
) -> None:
    """Empty, cut and oversized files are counted and named, and every picture beside them is kept."""
    made = {
        "zero bytes": lambda: b"",
        "text": lambda: b"not a picture",
        "cut JPEG": lambda: image(0)[:-300],
        "cut head": lambda: image(0, kind="PNG")[:20],
        "whole PNG": lambda: bomb(SIDE),
    }
    data = made[kind]() if kind in made else declared(image, kind, SIDE)
    batch = read(tmp_path, {"a.png": data}, preprocess)
    assert [skipped.id for skipped in batch.skipped] == ["a.png"]
    assert reason in batch.skipped[0].reason
    assert len(batch.pixels) == 100


@pytest.mark.parametrize("kind", ["whole PNG", "JPEG", "TIFF", "GIF", "PPM"])
def test_a_declared_giant_takes_no_memory(tmp_path: Path, image: Callable[..., bytes], kind: str) -> None:
    """A file of 20,000 x 20,000 pixels is refused by its header: a process that reads it grows by less than the pixels would take."""
    path = tmp_path / "giant"
    path.write_bytes(bomb(SIDE) if kind == "whole PNG" else declared(image, kind, SIDE))
    script = (
        "import sys; from pathlib import Path; from clipq.calib_data.pipeline import decode; "
        "from clipq.evaluate.footprint import peak_memory_bytes as peak; data = Path(sys.argv[1]).read_bytes(); before = peak()\n"
        "try: decode(data)\n"
        "except Exception as error: print(peak() - before, type(error).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    grown, error = run.stdout.split()
    assert int(grown) < LIMIT_BYTES
    assert error in {"DecompressionBombError", "OSError"}


def test_the_decoders_are_named() -> None:
    """Pillow's version is the one that is imported, and the JPEG and PNG libraries are named with theirs."""
    found = decoder_versions()
    assert found["pillow"] == Image.__version__
    assert found["jpeg"].startswith("libjpeg") or found["jpeg"][0].isdigit()
    assert found["png"].startswith("zlib 1.")
