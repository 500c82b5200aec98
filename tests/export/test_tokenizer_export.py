"""The exported tokenizer gives open_clip's ids, and a bundle does not ship one that does not."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from clipq.calib_data.tokenizer import Tokenizer, TokenizerConfig
from clipq.engines.torch.checkpoint import Checkpoint, load_checkpoint
from clipq.engines.torch.compat import import_open_clip
from clipq.errors import ExportError, MissingRuntimeError, RefusedError, UsageError
from clipq.export.probe_texts import probe_texts
from clipq.export.tokenizer import export_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[[str], str]) -> Checkpoint:
    """The tiny ViT, with open_clip's own tokenizer."""
    return load_checkpoint(tiny_checkpoint("vit"))


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its exported tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer")
    export_tokenizer(checkpoint, path)
    return path


def test_the_gate_compares_hundreds_of_texts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """ImageNet's thousand names count, up to 500 of them, each in four templates."""
    names = [f"thing {number}" for number in range(1000)]
    said = export_tokenizer(checkpoint, tmp_path, names)
    assert said["different"] == 0
    assert said["texts_compared"] == len(probe_texts(names)) > 2100


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
@pytest.mark.parametrize("context_length", [8, 77])
def test_every_cleaning_and_length_agrees(checkpoint: Checkpoint, tmp_path: Path, clean: str, context_length: int) -> None:
    """The gate itself passes for all of open_clip's ways of cleaning, also where most texts are truncated."""
    simple = import_open_clip().SimpleTokenizer(context_length=context_length, clean=clean)
    export_tokenizer(replace(checkpoint, tokenizer=simple, context_length=context_length), tmp_path)
    assert Tokenizer.from_files(tmp_path).tokens(["A photo"]).shape == (1, context_length)


def _old(letter: str) -> bool:
    """Tell whether a character has had one category since Unicode 3.2: libraries disagree on what newer versions added."""
    return unicodedata.ucd_3_2_0.category(letter) == unicodedata.category(letter) != "Cn"


def test_any_text_agrees(checkpoint: Checkpoint, folder: Path) -> None:
    """Whatever Unicode holds, the ids are open_clip's."""
    tokenizer = Tokenizer.from_files(folder)

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]).filter(_old), max_size=40))
    def agree(text: str) -> None:
        assert tokenizer.tokens([text]).tolist() == checkpoint.tokenizer([text]).tolist()

    agree()


def test_a_truncated_text_keeps_its_end(folder: Path) -> None:
    """Pooling looks for the end-of-text token, so the last place is its."""
    tokens = Tokenizer.from_files(folder).tokens(["word " * 200, "word"])
    assert tokens.dtype == np.int32
    assert (tokens[0, 0], tokens[0, -1]) == (49406, 49407)
    assert tokens[1].tolist()[3:] == [0] * 74


def test_no_texts_give_no_rows(folder: Path) -> None:
    """The shape holds for an empty list."""
    assert Tokenizer.from_files(folder).tokens([]).shape == (0, 77)


def test_plain_ascii_needs_no_ftfy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The edge install tokenizes class names; where it could differ from open_clip it stops instead."""
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    tokenizer = Tokenizer.from_files(folder)
    assert tokenizer.tokens(["a photo of a tench & a hen."]).any()
    with pytest.raises(MissingRuntimeError, match="pip install ftfy"):
        tokenizer.tokens(["caf\u00e9"])


def test_a_tokenizer_that_differs_is_deleted(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Other ids on one text stop the export, and no file stays."""

    class Shifted:
        def __init__(self) -> None:
            self.__dict__.update(checkpoint.tokenizer.__dict__)

        def __call__(self, texts: list[str]) -> object:
            tokens = checkpoint.tokenizer(texts)
            tokens[:, 1] += 1
            return tokens

    with pytest.raises(ExportError, match=r"differs from open_clip's on \d+ of \d+ texts"):
        export_tokenizer(replace(checkpoint, tokenizer=Shifted()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_random_word_dropping_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A training-time tokenizer gives other ids each time."""
    dropping = import_open_clip().SimpleTokenizer(reduction_mask="random")
    with pytest.raises(ExportError, match="drops words at random"):
        export_tokenizer(replace(checkpoint, tokenizer=dropping), tmp_path)


class _Fast:
    """What open_clip's HFTokenizer wraps: a fast Hugging Face tokenizer, BERT-like, small."""

    pad_token_id, pad_token, sep_token_id, bos_token_id, eos_token_id = 0, "[PAD]", 2, None, None
    padding_side = truncation_side = "right"

    def __init__(self) -> None:
        vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "photo": 5, "of": 6}
        self.backend_tokenizer = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self.backend_tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))


def _clean_whitespace(text: str) -> str:
    return " ".join(import_open_clip().tokenizer.basic_clean(text).split())


class _HuggingFace:
    """open_clip's HFTokenizer around it, as far as it can be without the transformers library."""

    strip_sep_token = True
    tokenizer_mode = ""
    clean_fn = staticmethod(_clean_whitespace)

    def __init__(self) -> None:
        self.tokenizer = _Fast()

    def __call__(self, texts: list[str]) -> np.ndarray:
        rows = [self.tokenizer.backend_tokenizer.encode(_clean_whitespace(text)).ids for text in texts]
        rows = [row if len(row) <= 6 else [*row[:5], 2] for row in rows]
        tokens = np.asarray([row + [0] * (6 - len(row)) for row in rows])
        return np.where(tokens == 2, 0, tokens)


def test_a_hugging_face_tokenizer_is_taken_over(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Its own special tokens, truncation, padding and the dropped separator come along."""
    export_tokenizer(replace(checkpoint, tokenizer=_HuggingFace(), context_length=6), tmp_path)
    assert Tokenizer.from_files(tmp_path).tokens(["a photo of"]).tolist() == [[1, 4, 5, 6, 0, 0]]


def test_a_tokenizer_without_a_portable_form_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A slow tokenizer is one clear line."""
    slow = SimpleNamespace(tokenizer=SimpleNamespace())
    with pytest.raises(ExportError, match="no portable form"):
        export_tokenizer(replace(checkpoint, tokenizer=slow), tmp_path)


@pytest.mark.parametrize("broken", ["tokenizer.json", "config.json"])
def test_broken_files_are_refused(checkpoint: Checkpoint, tmp_path: Path, broken: str) -> None:
    """A reader never guesses."""
    export_tokenizer(checkpoint, tmp_path)
    (tmp_path / broken).write_text("{")
    with pytest.raises(RefusedError, match="holds no tokenizer"):
        Tokenizer.from_files(tmp_path)


def test_an_unknown_way_of_cleaning_is_named() -> None:
    """The nearest one is suggested."""
    with pytest.raises(UsageError, match="Did you mean 'lower'"):
        TokenizerConfig(77, "lowr", None, None, 0, None, "argmax")
