"""``captions:FILE@ROOT``: images in a folder with captions in a CSV (``image,caption``) or in Karpathy's JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipq.calib_data.captions import Captioned
from clipq.calib_data.imagefiles import FileSource
from clipq.calib_data.layout import DEFAULT_SPLIT, existing_folder, existing_path, leaves_folder, path_and_split
from clipq.calib_data.source import DEFAULT_TEMPLATES
from clipq.errors import DataError, UsageError, unknown_name

_COLUMNS = ("image", "caption")


def open_caption_file(rest: str, split: str | None) -> Captioned:
    """Return the images of ``FILE.csv[@ROOT]`` or ``FILE.json[@ROOT][:SPLIT]`` with their captions, in the order of the file.

    A CSV has a row per caption. Karpathy's JSON (COCO, Flickr) has ``images`` with ``filename``, perhaps ``filepath``, ``sentences``
    and ``split``; the default split is ``test``. Paths are relative to ``ROOT``, or to the folder of the file.

    Raises:
        UsageError: The file, the root or the split does not exist, or the file is of another kind.
        DataError: The file cannot be read, an image is missing or outside the root, or a caption is empty.
    """
    text, named = path_and_split(rest, split)
    file, _, root_text = (text, "", "") if Path(text).expanduser().is_file() else text.rpartition("@")
    path = existing_path(file or root_text)
    if not path.is_file() or path.suffix.lower() not in {".csv", ".json"}:
        raise UsageError(f"{path} holds no captions", expected="captions:FILE.csv@ROOT or captions:FILE.json@ROOT")
    root = existing_folder(root_text) if file and root_text else path.parent
    karpathy = path.suffix.lower() == ".json"
    chosen = named or DEFAULT_SPLIT
    captions: dict[str, list[str]] = {}
    for image, caption in _karpathy(path, chosen) if karpathy else _rows(path):
        captions.setdefault(image, []).append(caption.strip())
    _check(path, root, captions)
    data_id = f"captions:{path}@{root}" + (f":{chosen}" if karpathy else "")
    source = FileSource(data_id, root, list(captions), [-1] * len(captions), classnames=(), templates=DEFAULT_TEMPLATES)
    return Captioned(source, [tuple(texts) for texts in captions.values()])


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                raise DataError(f"{path} has other columns", found=reader.fieldnames, expected="image and caption in its first line")
            for row in reader:
                yield row["image"] or "", row["caption"] or ""
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}", found=error, expected="a CSV file in UTF-8") from error


def _karpathy(path: Path, split: str) -> Iterator[tuple[str, str]]:
    try:
        images: list[Any] = json.loads(path.read_text(encoding="utf-8"))["images"]
        entries = [(entry["split"], _place(entry), [sentence["raw"] for sentence in entry["sentences"]]) for entry in images]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {path}", found=repr(error), expected="images with filename, split and sentences") from error
    splits = sorted({name for name, _, _ in entries})
    if split not in splits:
        raise unknown_name(f"split of {path}", split, splits)
    for name, image, sentences in entries:
        if name == split:
            yield from ((image, sentence) for sentence in sentences)


def _place(entry: dict[str, Any]) -> str:
    folder = entry.get("filepath", "")
    return f"{folder}/{entry['filename']}" if folder else str(entry["filename"])


def _check(path: Path, root: Path, captions: dict[str, list[str]]) -> None:
    if not captions:
        raise DataError(f"no captions in {path}", expected="at least one")
    for image, texts in captions.items():
        if not image or leaves_folder(image):
            raise DataError(f"{path} names an image outside its folder", found=repr(image), expected="a relative path without ..")
        if not all(texts):
            raise DataError(f"{path} has an empty caption", found=image)
    missing = [image for image in captions if not (root / image).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(captions)} images of {path} are not in {root}",
            found=f"no {missing[0]}",
            fix=f"Name the folder of the images: captions:{path}@FOLDER",
        )
