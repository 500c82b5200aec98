"""Writes a model's tokenizer as two plain files and proves that they give the same ids as open_clip."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipq.calib_data.tokenizer import CONFIG, VOCABULARY, Tokenizer, TokenizerConfig
from clipq.engines.torch.checkpoint import Checkpoint
from clipq.errors import ExportError
from clipq.export.probe_texts import probe_texts
from clipq.files import write_json, write_text

# What open_clip's SimpleTokenizer splits words by (openai/CLIP, simple_tokenizer.py), without its special tokens.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLEANER_NAMES = {"_clean_lower": "lower", "_clean_whitespace": "whitespace", "_clean_canonicalize": "canonicalize"}


def export_tokenizer(checkpoint: Checkpoint, folder: Path, classnames: Sequence[str] = ()) -> dict[str, Any]:
    """Write ``tokenizer.json`` and ``config.json``; return how many texts were compared with open_clip's tokenizer.

    Args:
        checkpoint: The model.
        folder: Where the files go.
        classnames: Names to compare, beside built-in ones, odd strings and texts that are too long.

    Raises:
        ExportError: The tokenizer is of an unknown kind, or a text gets other ids than from open_clip; the files are deleted.
    """
    source: Any = checkpoint.tokenizer
    config, backend = _from_simple(source, checkpoint) if hasattr(source, "bpe_ranks") else _from_huggingface(source, checkpoint)
    write_text(folder / VOCABULARY, backend.to_str())
    write_json(folder / CONFIG, config.to_json())
    texts = probe_texts(classnames)
    try:
        _compare(checkpoint, Tokenizer.from_files(folder), texts)
    except ExportError:
        (folder / VOCABULARY).unlink()
        (folder / CONFIG).unlink()
        raise
    return {"texts_compared": len(texts), "different": 0}


def _from_simple(source: Any, checkpoint: Checkpoint) -> tuple[TokenizerConfig, Any]:
    """Rebuild open_clip's byte-level BPE in the ``tokenizers`` library."""
    from tokenizers import Regex, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    if source.reduction_fn is not None:
        raise ExportError(f"the tokenizer of {checkpoint.model_id} drops words at random", expected="no reduction_mask")
    backend = Backend(models.BPE(vocab=dict(source.encoder), merges=list(source.bpe_ranks), end_of_word_suffix="</w>"))
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    start, end = (source.decoder[index] for index in (source.sot_token_id, source.eot_token_id))
    backend.add_special_tokens([source.decoder[index] for index in source.all_special_ids])
    special = [(start, source.sot_token_id), (end, source.eot_token_id)]
    backend.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=special)
    backend.enable_truncation(checkpoint.context_length)
    backend.enable_padding(length=checkpoint.context_length, pad_id=0, pad_token=source.decoder[0])
    config = TokenizerConfig(
        context_length=checkpoint.context_length,
        clean=_cleaner(source),
        start_id=source.sot_token_id,
        end_id=source.eot_token_id,
        pad_id=0,
        zeroed_id=None,
        pooling=checkpoint.pooling,
    )
    return config, backend


def _from_huggingface(source: Any, checkpoint: Checkpoint) -> tuple[TokenizerConfig, Any]:
    """Take the fast tokenizer inside open_clip's ``HFTokenizer`` or ``SigLipTokenizer``."""
    from tokenizers import Tokenizer as Backend

    inner: Any = getattr(source, "tokenizer", None)
    fast: Any = getattr(inner, "backend_tokenizer", None)
    if fast is None or getattr(source, "tokenizer_mode", None):
        raise ExportError(f"the tokenizer of {checkpoint.model_id} has no portable form", found=type(source).__name__)
    backend = Backend.from_str(fast.to_str())
    backend.enable_truncation(checkpoint.context_length, direction=inner.truncation_side)
    backend.enable_padding(
        length=checkpoint.context_length, pad_id=inner.pad_token_id, pad_token=inner.pad_token, direction=inner.padding_side
    )
    config = TokenizerConfig(
        context_length=checkpoint.context_length,
        clean=_cleaner(source),
        start_id=inner.bos_token_id,
        end_id=inner.eos_token_id,
        pad_id=inner.pad_token_id,
        zeroed_id=inner.sep_token_id if getattr(source, "strip_sep_token", False) else None,
        pooling=checkpoint.pooling,
    )
    return config, backend


def _cleaner(source: Any) -> str:
    function = getattr(source, "clean_fn", None)
    return "canonicalize" if function is None else _CLEANER_NAMES[function.__name__]  # SigLipTokenizer has no choice


def _compare(checkpoint: Checkpoint, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    expected = np.asarray(checkpoint.tokenizer(list(texts)))
    found = tokenizer.tokens(texts)
    wrong = np.flatnonzero((found != expected).any(axis=1))
    if len(wrong):
        raise ExportError(
            f"the exported tokenizer of {checkpoint.model_id} differs from open_clip's on {len(wrong)} of {len(texts)} texts",
            found=f"{json.dumps(texts[wrong[0]][:80])} -> {found[wrong[0]][:16].tolist()}",
            expected=expected[wrong[0]][:16].tolist(),
        )
