"""Ranks blocks by the damage of quantizing each alone, and keeps the worst unquantized until every bound holds."""

from __future__ import annotations

from collections.abc import Sequence

from clipq.engines.base import Tower
from clipq.errors import ExportError
from clipq.export.keep import SENSITIVITY, Bound, KeepRequest, Kept, parse_bounds
from clipq.export.quantize.graph import scratch_folder
from clipq.progress import bar, note
from clipq.sensitivity.data import load_data
from clipq.sensitivity.found import Found, Ranking, first_unmet, rank
from clipq.sensitivity.lab import Block, Lab, Step
from clipq.sensitivity.tell import facts_of, table


def choose_kept(request: KeepRequest) -> Kept:
    """Return the nodes that stay unquantized so that every bound of ``--max-drop`` holds on the calibration images, and what was measured.

    Without a bound nothing is kept and the blocks are only ranked. Where the bounds hold with everything quantized, nothing is kept,
    and the ranking is left out unless it was asked for.

    Raises:
        UsageError: A bound cannot be read.
        DataError: Too many images are unreadable, or an OOD image is a calibration image.
        ExportError: A bound does not hold even with all blocks but one of each tower kept; the line says what was reached.
    """
    bounds = parse_bounds(request.recipe.max_drop)
    with scratch_folder(request.folder / SENSITIVITY) as scratch:
        towers: list[Tower] = [tower for tower in request.graphs if tower in request.recipe.towers]
        lab = Lab(request, load_data(request, scratch), {tower: request.observed(tower) for tower in towers}, scratch)
        whole = lab.measure(())
        unmet = first_unmet(bounds, whole.damage)
        ranking = rank(lab, request.recipe.seed) if unmet or request.recipe.sensitivity else None
        found = Found(bounds, ranking, keep_until(ranking, bounds, whole) if unmet and ranking else [whole])
        facts = facts_of(request, lab, found)
        lab.close()
    note(table(facts))
    return Kept(_nodes(found), facts)


def keep_until(ranking: Ranking, bounds: Sequence[Bound], whole: Step) -> list[Step]:
    """Return the steps from everything quantized to the first choice that holds every bound, one more block kept in each.

    The next block is the one that does most damage alone to the first metric that is not yet within its bound. Errors of blocks add
    up and cancel, so a choice says nothing certain of a larger or smaller one, as bisection would need: each is measured whole, and
    the first that holds has the fewest blocks in this order. That takes no more measurements than the ranking did.

    Raises:
        ExportError: No choice holds them.
    """
    lab, steps = ranking.lab, [whole]
    with bar("Keeping blocks until the bounds hold", None) as advance:
        while unmet := first_unmet(bounds, steps[-1].damage):
            severity = {block: ranking.severity(block, unmet.metric) for block in candidates(lab.blocks, steps[-1].kept)}
            if not severity:
                raise _unreachable(unmet, steps)
            steps.append(lab.measure((*steps[-1].kept, max(severity, key=severity.__getitem__))))
            advance(1)
    return steps


def candidates(blocks: Sequence[Block], kept: Sequence[Block]) -> list[Block]:
    """Return what may still be kept: each tower keeps one INT8 block at least, or it would be none."""
    left = [block for block in blocks if block not in kept]
    return [block for block in left if any(other.tower == block.tower and other != block for other in left)]


def _unreachable(unmet: Bound, steps: Sequence[Step]) -> ExportError:
    best = min(steps, key=lambda step: step.damage[unmet.metric])
    return ExportError(
        f"--max-drop {unmet} cannot be held",
        found=f"at best {best.damage[unmet.metric]:.4g}, with {len(best.kept)} blocks kept, and no more than {len(steps[-1].kept)} can be",
        fix="Raise the bound, calibrate on other or more images, or choose another --calib-method.",
    )


def _nodes(found: Found) -> dict[str, dict[str, str]]:
    nodes: dict[str, dict[str, str]] = {}
    if found.ranking is None:
        return nodes
    asked = ", ".join(map(str, found.bounds))
    for block in found.steps[-1].kept:
        costs = ", ".join(f"{bound.metric} {found.ranking.damage[block][bound.metric]:.4g}" for bound in found.bounds)
        nodes.setdefault(block.tower, {}).update(dict.fromkeys(block.nodes, f"kept for --max-drop {asked}: alone it costs {costs}"))
    return nodes
