"""Texts to token ids, as the model's own tokenizer makes them, from two files of the bundle and without torch."""

from __future__ import annotations

import html
import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.errors import MissingRuntimeError, RefusedError, unknown_name

VOCABULARY = "tokenizer.json"
CONFIG = "config.json"
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """What ``tokenizer/config.json`` says; truncation, padding and special tokens stand in ``tokenizer.json``.

    Attributes:
        context_length: Tokens per text, after truncation and padding.
        clean: How a text is cleaned first: ``lower``, ``whitespace`` or ``canonicalize``.
        start_id: Id put before each text, or None.
        end_id: Id put after each text, also after a truncated one, or None.
        pad_id: Id that fills the rest.
        zeroed_id: Id that is replaced by 0 at the end (open_clip's ``strip_sep_token``), or None.
        pooling: How the text tower picks its feature; told for the reader, the graph already does it.
    """

    context_length: int
    clean: str
    start_id: int | None
    end_id: int | None
    pad_id: int
    zeroed_id: int | None
    pooling: str

    def __post_init__(self) -> None:
        if self.clean not in CLEANERS:
            raise unknown_name("way of cleaning", self.clean, CLEANERS)

    def to_json(self) -> dict[str, Any]:
        """Return the value of ``config.json``."""
        return asdict(self)


class Tokenizer:
    """A model's tokenizer.

    Attributes:
        config: What ``config.json`` says.
    """

    def __init__(self, config: TokenizerConfig, backend: Any) -> None:
        self.config = config
        self._backend = backend

    @classmethod
    def from_files(cls, folder: Path) -> Tokenizer:
        """Read ``tokenizer.json`` and ``config.json`` of a folder.

        Raises:
            RefusedError: A file is missing or is not what it should be.
        """
        import tokenizers

        try:
            config = TokenizerConfig(**json.loads((folder / CONFIG).read_text()))
            backend = tokenizers.Tokenizer.from_str((folder / VOCABULARY).read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise RefusedError(f"{folder} holds no tokenizer", found=error, fix="Export the bundle again.") from error
        return cls(config, backend)

    def tokens(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return token ids, int32 ``(len(texts), context_length)``.

        Raises:
            MissingRuntimeError: A text has more than plain ASCII, and ftfy, with which open_clip repairs such text, is missing.
        """
        clean = CLEANERS[self.config.clean]
        rows = [self._backend.encode(clean(_repair(text))).ids for text in texts]
        ids = np.asarray(rows, np.int32).reshape(len(texts), self.config.context_length)
        if self.config.zeroed_id is not None:
            ids[ids == self.config.zeroed_id] = 0
        return ids


def _repair(text: str) -> str:
    """Repair broken Unicode and HTML entities; open_clip's ``basic_clean``. Plain ASCII has nothing that ftfy would change."""
    if not (text.isascii() and text.isprintable()) or ("&" in text and ";" in text):
        try:
            import ftfy
        except ImportError as error:
            raise MissingRuntimeError(f"the text {text!r} needs ftfy", fix="Run: pip install ftfy") from error
        text = ftfy.fix_text(text)
    return html.unescape(html.unescape(text)).strip()


def _whitespace(text: str) -> str:
    return " ".join(text.split())


def _lower(text: str) -> str:
    return _whitespace(text).lower()


def _canonicalize(text: str) -> str:
    return _lower(text.replace("_", " ").translate(_WITHOUT_PUNCTUATION))


CLEANERS: Mapping[str, Callable[[str], str]] = {"lower": _lower, "whitespace": _whitespace, "canonicalize": _canonicalize}
