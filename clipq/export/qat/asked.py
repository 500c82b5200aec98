"""What a recipe asks of training, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable

from clipq.engines.table import ENGINES
from clipq.errors import UsageError
from clipq.export.qat.plan import PLANS
from clipq.methods import method_of
from clipq.recipe import Recipe


def is_trained(kind: str) -> bool:
    """Tell whether a kind of graph comes out of training.

    >>> is_trained("w8a8-lsq"), is_trained("w8a8-lsq-fp16"), is_trained("w8a8-gptq")
    (True, False, False)
    """
    named = method_of(f"ort-{kind}")
    return named is not None and named[0].family == "qat"


def trained_methods(engine_ids: Iterable[str]) -> list[str]:
    """Return the methods with training among some engines, each once."""
    named = [method_of(f"ort-{ENGINES[engine_id].graph.removesuffix('-fp16')}") for engine_id in engine_ids]
    return list(dict.fromkeys(found[0].name for found in named if found and found[0].family == "qat"))


def check_training(recipe: Recipe) -> None:
    """Check that a recipe speaks of training only where something is trained, and that it can be.

    Raises:
        UsageError: It does not, or asks for patch tokens, or for scales of a method that learns none.
    """
    methods, default = trained_methods(recipe.engines), Recipe(model="").training
    changed = [f"--{name.replace('_', '-')}" for name, value in recipe.training.items() if value != default[name]]
    if changed and not methods:
        raise UsageError(
            "nothing is trained",
            found=", ".join(changed),
            expected=f"a method of {', '.join(PLANS)}",
            fix="Name one with --method, or drop these.",
        )
    if methods and recipe.patch_tokens:
        raise UsageError("methods with training have no patch tokens", found=", ".join(methods), fix="Export them without --patch-tokens.")
    for name in methods:
        if recipe.qat_train == "scales" and not PLANS[name].learns:
            raise UsageError(f"{name} learns no scales", found="--qat-train scales", fix="Use --qat-train all, or pact, lsq and their kin.")
