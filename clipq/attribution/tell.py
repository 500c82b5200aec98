"""What an attribution found, as a sentence, as tables for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipq.evaluate.report.format import MISSING, difference, interval, quantity
from clipq.evaluate.report.markdown import escaped
from clipq.evaluate.report.plain import aligned, markdown_table

HOW = (
    "The loss is the mean squared distance of unit embeddings from FP32 PyTorch's, of images and of class texts together. A part is by "
    "how much a stage raises it over the stage before, negative where errors cancel. Stages that follow one another sum to the whole; "
    "what is measured alone (weights, activations, a tower) need not, and the remainder is what is left. A step can move embeddings "
    "further than it raises the loss: another rounding replaces one noise by another. All other figures are of the two stages that the "
    "row compares, cosines of images; deltas are in percent points with paired 95 % intervals."
)
DEFAULT = (
    "Opened with ONNX Runtime's defaults, the file loses {} on this processor instead of {}. It loses more than clipq says only on x86 "
    "processors without VNNI, and not with the session entry that engine.json names."
)
STEP_COLUMNS = (
    "stage",
    "share of the loss",
    "loss so far",
    "squared step",
    "cosine mean / p1 / min",
    "centred mean / p1 / min",
    "disagreement",
    "right to wrong / wrong to right",
    "top-1 pp",
    "ECE-15 pp",
)
WHOLE_COLUMNS = ("stage", "loss", *STEP_COLUMNS[4:])


def sentence(found: Mapping[str, Any]) -> str:
    """Return in one sentence where most of the loss arises."""
    loss = found["loss"]
    named = {stage["key"]: stage["title"] for stage in found["stages"]}
    if not loss["total"]:
        return f"{found['engine']} gives exactly the embeddings of {found['stages'][0]['title']}."
    ranked = sorted(loss["parts"], key=lambda key: -loss["parts"][key]["squared_error"])
    shown = ", ".join(f"{named[key]} {_share(loss['parts'][key]['share'])}" for key in ranked[:3])
    return f"The loss of {found['engine']}, a squared embedding error of {loss['total']:.3g}, arises mostly at: {shown}."


def table(found: Mapping[str, Any]) -> str:
    """Return the sentence and a narrow form of the table of steps for a terminal, aligned."""
    wanted = [STEP_COLUMNS.index(name) for name in STEP_COLUMNS if name not in {"squared step", "cosine mean / p1 / min"}]
    rows = [[row[column] for column in wanted] for row in (STEP_COLUMNS, *step_rows(found))]
    for row in rows:
        row[3] = row[3].split(" / ")[0].replace("centred mean", "centred cosine")
    return "\n".join([sentence(found), "", aligned(rows), "", *remarks(found)])


def step_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return a row per stage, compared with the one before, and one of the remainder; only parts of the loss have a share."""
    parts, rest, rows = found["loss"]["parts"], found["loss"]["remainder"], []
    for stage in found["stages"]:
        step, whole = stage["to_before"], stage["to_first"]
        share = _share(parts[stage["key"]]["share"]) if stage["key"] in parts else MISSING
        title = f"{stage['title']} (from {stage['before']})" if stage["before"] else stage["title"]
        figures = [_error(whole), _error(step), *_figures(step)] if step else [MISSING] * 8
        rows.append([title, share, *figures])
    return [*rows, ["remainder", _share(rest["share"]), *[MISSING] * 8]]


def whole_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return a row per stage, compared with the first."""
    later = [stage for stage in found["stages"] if stage["to_first"]]
    return [[stage["title"], _error(stage["to_first"]), *_figures(stage["to_first"])] for stage in later]


def remarks(found: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know beside the tables."""
    lines = [HOW]
    pixels = found["pixels"]
    if pixels is not None:
        lines.append(
            f"Pixels: largest difference {pixels['max_abs']:.3g} (normalised), {quantity(pixels['share_differing'], 'fraction')} of the "
            f"numbers differ, in {quantity(pixels['images_differing'], 'fraction')} of the images."
        )
    errors = {stage["key"]: _error(stage["to_first"]) for stage in found["stages"] if stage["to_first"]}
    if "default" in errors:
        lines.append(DEFAULT.format(errors["default"], errors["engine"]))
    lines += [f"Left out: {key}, because {why}." for key, why in found["provenance"]["left_out"].items()]
    return lines


def markdown(found: Mapping[str, Any]) -> str:
    """Return ``attribution.md``."""
    data = found["dataset"]
    first = found["stages"][0]["title"]
    parts = [
        f"# Where {escaped(found['engine'])} loses",
        sentence(found),
        f"{data['n']:,} images of {escaped(data['id'])}, {data['classes']:,} classes, model {escaped(found['provenance']['model']['id'])}.",
        "## Step by step: each stage and the one before",
        markdown_table(STEP_COLUMNS, step_rows(found)),
        f"## Each stage and {first}",
        markdown_table(WHOLE_COLUMNS, whole_rows(found)),
        "## What changes at each stage",
        "\n".join(f"- {escaped(stage['title'])}: {escaped(stage['changes'])}." for stage in found["stages"]),
        "## How to read it",
        "\n\n".join(map(escaped, remarks(found))),
    ]
    return "\n\n".join(parts) + "\n"


def _figures(seen: Mapping[str, Any]) -> list[str]:
    swapped = seen["flips"]
    return [
        *(" / ".join(f"{seen[name][key]:.5f}" for key in ("mean", "p1", "min")) for name in ("cosine", "cosine_centred")),
        f"{100 * seen['disagreement']:.2f} %",
        f"{100 * swapped['correct_to_wrong']:.2f} % / {100 * swapped['wrong_to_correct']:.2f} %",
        *(_moved(seen[name]) for name in ("acc1", "ece15")),
    ]


def _moved(entry: Mapping[str, Any]) -> str:
    return f"{difference(entry['delta'], 'fraction').removesuffix(' pp')} {interval(entry['delta_ci95'], 'fraction', signed=True)}"


def _error(seen: Mapping[str, Any]) -> str:
    value = seen["squared_error"]["both"]
    return f"{value:.2e}".replace("-", "−") if value else "0"


def _share(value: float | None) -> str:
    return MISSING if value is None else quantity(value, "fraction")
