"""Proof of what ran: every engine's layers as its runtime tells them, held against what its graph asks for.

An engine that is called INT8 (or FP8) and computes less than half of the multiply-adds that its graph quantizes in that precision has
silently fallen back: no figure of it may be taken for one of INT8. The same holds for a product on another provider than the engine's,
and for a runtime that does not tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from clipq.artifact import Bundle, EngineEntry
from clipq.engines.base import Tower
from clipq.engines.proof import UNKNOWN, RanLayer, TowerProof, read_asked
from clipq.engines.table import open_engine
from clipq.errors import EngineError
from clipq.progress import bar, note

QUANTIZED = ("int8", "fp8", "int8-weights", "int4-weights")
_FELL_BACK, _WHOLE = 0.5, 0.95  # of the multiply-adds that the graph quantizes: below, it fell back; from here on, it is whole
_WAYS_TO_TELL = {
    "onnxruntime": "Use the trt-* engine of this precision, whose layers can be inspected.",
    "tensorrt": "Build its plans with TensorRT 10 or later, which lists the kernels that 8.6 hides in one.",
    "tensorrt-rtx": "Use the trt-* engine of this precision.",
}
_SHOWN = 3  # layers named in a message


def prove(
    bundle: Bundle, engine_ids: Sequence[str], *, threads: int | None = None, allow_fallback: bool = False
) -> dict[str, dict[str, Any]]:
    """Return engine -> ``report["engines"][engine]["layers"]``; engines that ship no file (PyTorch) have none.

    Args:
        bundle: Where the engines are.
        engine_ids: Which to look into; each is opened once.
        threads: CPU threads, as in the evaluation.
        allow_fallback: Note a fallback and mark it with ``"fallback": True`` instead of raising.

    Raises:
        EngineError: An engine fell back, cannot be shown not to have, or cannot be looked into.
        RefusedError: A file is not what the manifest says.
    """
    found: dict[str, dict[str, Any]] = {}
    seen: dict[tuple[str, ...], TowerProof | None] = {}
    shipped = [engine_id for engine_id in engine_ids if bundle.engine(engine_id).towers]
    with bar("Looking at what really runs", len(shipped)) as advance:
        for engine_id in shipped:
            entry = bundle.engine(engine_id)
            provider, proofs = _look(bundle, engine_id, entry, threads, seen)
            advance(1)
            if not proofs:
                continue
            layers = summarise(proofs, _counted(bundle, entry, proofs), read_asked(bundle, engine_id))
            problem = find_fallback(engine_id, entry, layers) or _elsewhere(engine_id, provider, proofs)
            if problem is not None and not allow_fallback:
                raise problem
            remark = str(problem) if problem is not None else _shortfall(engine_id, entry, layers)
            if remark:
                note(remark)
            found[engine_id] = {**layers, **({"fallback": True} if problem else {}), **({"note": remark} if remark else {})}
    return found


def _counted(bundle: Bundle, entry: EngineEntry, proofs: Mapping[Tower, TowerProof]) -> tuple[str, ...]:
    """Return the towers that figures are of: those the recipe narrows, for every engine alike, so that engines can be compared."""
    named = entry.quantized or bundle.manifest.recipe.get("towers", ())
    return tuple(tower for tower in named if tower in proofs) or tuple(proofs)


def _look(
    bundle: Bundle, engine_id: str, entry: EngineEntry, threads: int | None, seen: dict[tuple[str, ...], TowerProof | None]
) -> tuple[str, dict[Tower, TowerProof]]:
    """Return the provider and the proofs of an engine; a tower that several engines share is looked into once."""
    with open_engine(bundle, engine_id, threads) as engine:
        proofs: dict[Tower, TowerProof] = {}
        for tower in engine.towers:
            key = (entry.towers[tower], entry.runtime, entry.provider)
            if key not in seen:
                seen[key] = engine.prove(tower)
            if (proof := seen[key]) is not None:
                proofs[tower] = proof
        return engine.provider, proofs


def summarise(proofs: Mapping[Tower, TowerProof], counted: Sequence[str], asked: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return the value of ``layers`` in a report.

    Args:
        proofs: What ran, tower by tower.
        counted: The towers that shares, counts and attention are of.
        asked: Tower -> precision -> multiply-adds that the graph asks for; may be empty.
    """
    whole = TowerProof(next(iter(proofs.values())).source, tuple(layer for tower in counted for layer in proofs[tower].layers))  # type: ignore[index]
    computing = [layer for layer in whole.layers if layer.computes]
    wanted: Counter[str] = Counter()
    for tower in counted:
        wanted.update(asked.get(tower, {}))
    return {
        "source": whole.source,
        "towers": list(counted),
        "precision": dict(Counter(layer.precision for layer in computing)),
        "multiply_adds": _shares(_ran(computing, wanted.total())),
        "asked": _shares(wanted),
        "attention": whole.attention,
        "reformats": sum(layer.kind == "reformat" for layer in whole.layers),
        "providers": dict(Counter(layer.provider for proof in proofs.values() for layer in proof.layers)),
        "each": {tower: _each(proof) for tower, proof in proofs.items()},
    }


def _ran(computing: Sequence[RanLayer], wanted: int) -> Counter[str]:
    """Return precision -> multiply-adds; where some layers tell nothing, the work that no other layer did is theirs."""
    ran: Counter[str] = Counter()
    for layer in computing:
        ran[layer.precision] += layer.multiply_adds
    if any(layer.precision == UNKNOWN for layer in computing):
        ran[UNKNOWN] += max(0, wanted - ran.total())
    return ran


def _shares(work: Mapping[str, int]) -> dict[str, float]:
    total = sum(work.values())
    return {precision: round(amount / total, 4) for precision, amount in work.items() if amount} if total else {}


def _each(proof: TowerProof) -> list[dict[str, Any]]:
    computing = [layer for layer in proof.layers if layer.computes]
    total = sum(layer.multiply_adds for layer in computing) or 1
    return [
        {"name": layer.name, "kind": layer.kind, "precision": layer.precision, "share": round(layer.multiply_adds / total, 5)}
        for layer in computing
    ]


def find_fallback(engine_id: str, entry: EngineEntry, layers: Mapping[str, Any]) -> EngineError | None:
    """Return the error for a quantized engine that does not, or cannot be shown to, compute in its precision; None where it does."""
    if entry.precision not in QUANTIZED or not entry.quantized:
        return None
    name = entry.precision.upper()
    ran, wanted = _share(layers, entry.precision), _wanted(layers, entry.precision)
    if ran > 0 and ran >= _FELL_BACK * wanted:
        return None
    expected = f"{_percent(wanted)}, as its graph asks" if wanted else f"a graph that asks for {name}"
    unknown = layers["multiply_adds"].get(UNKNOWN, 0.0) if layers["multiply_adds"] else 1.0
    if ran + unknown > 0 and ran + unknown >= _FELL_BACK * wanted:
        return EngineError(
            f"{engine_id} is not shown to run in {name}: {layers['source']} does not tell the precision of its layers",
            found=f"{_percent(ran)} of the multiply-adds in {name}, {_percent(unknown)} unknown",
            expected=expected,
            fix=f"{_WAYS_TO_TELL.get(entry.runtime, '')} Or add --allow-fallback to evaluate it as it is.",
        )
    others = [layer for tower in layers["towers"] for layer in layers["each"][tower] if layer["precision"] != entry.precision]
    largest = sorted(others, key=lambda layer: -layer["share"])[:_SHOWN]
    return EngineError(
        f"{engine_id} silently fell back: it does not run in {name}",
        found=f"{_percent(ran)} of the multiply-adds in {name}; not so " + ", ".join(f"{x['name']} ({x['precision']})" for x in largest),
        expected=expected,
        fix="Export the engine again for this runtime, or add --allow-fallback to evaluate it as it is.",
    )


def _elsewhere(engine_id: str, provider: str, proofs: Mapping[Tower, TowerProof]) -> EngineError | None:
    """Return the error for products and convolutions on another provider than the engine's."""
    strays = [layer for proof in proofs.values() for layer in proof.layers if layer.computes and layer.provider != provider]
    if not strays:
        return None
    return EngineError(
        f"{engine_id} fell back to another provider for {len(strays)} products or convolutions",
        found=", ".join(f"{layer.name} on {layer.provider}" for layer in strays[:_SHOWN]),
        expected=provider,
        fix="Export the engine again for this runtime, or add --allow-fallback to evaluate it as it is.",
    )


def _shortfall(engine_id: str, entry: EngineEntry, layers: Mapping[str, Any]) -> str:
    """Return a remark on an engine that runs less in its precision than its graph asks for (TF32 is not FP32); else nothing."""
    if not layers["asked"]:
        return ""
    ran, wanted = _share(layers, entry.precision), _wanted(layers, entry.precision)
    if ran >= _WHOLE * wanted:
        return ""
    others = [f"{_percent(share)} {name.upper()}" for name, share in layers["multiply_adds"].items() if name != entry.precision]
    name, rest = entry.precision.upper(), f" ({', '.join(others)})" if others else ""
    return f"{engine_id}: {_percent(ran)} of the multiply-adds run in {name}{rest}, where its graph asks for {_percent(wanted)}"


def _share(layers: Mapping[str, Any], precision: str) -> float:
    share: float = layers["multiply_adds"].get(precision, 0.0)
    return share


def _wanted(layers: Mapping[str, Any], precision: str) -> float:
    """Return the share that the graph asks for; all of it where ``engine.json`` does not say."""
    share: float = layers["asked"].get(precision, 0.0) if layers["asked"] else 1.0
    return share


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"
