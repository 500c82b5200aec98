"""What a run of the lab found, as sentences, as tables for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipq.calibration_lab.bands import METRICS
from clipq.evaluate.report.format import difference, interval, quantity
from clipq.evaluate.report.markdown import escaped
from clipq.evaluate.report.names import METRICS as REPORTED
from clipq.evaluate.report.names import OOD_METRICS, PAIRED, Quantity
from clipq.evaluate.report.plain import aligned, markdown_table

QUANTITIES: Mapping[str, Quantity] = {
    "disagreement": PAIRED["disagreement"],
    **{name: REPORTED[name] for name in ("acc1", "ece15", "signed_gap")},
    "auroc": OOD_METRICS["auroc"].named("AUROC of MCM"),
    "cosine_centred": PAIRED["cosine_centred_mean"],
}
COLUMNS = ("quantized", "calibration images from", "n", "mean", "band", "sd", "from FP32", "95 % interval", "wider is")
HOW = (
    "Every draw calibrates the same image tower anew and answers the same test images; the text tower is FP32. The band is the "
    "smallest and the largest value over the draws, sd their standard deviation. The interval is what the choice of the test images "
    "leaves open of the mean over the draws (95 %, of its difference from FP32 where FP32 has such a figure, paired image by image). "
    "Where the band is wider, another draw of calibration images moves the result more than other test images would, and one bundle "
    "says less than its report does."
)
SHARED = (
    "Two draws of {n} images from the {size} of {id} share {share} of them on average, so their band is narrower than draws from a larger "
    "set would give."
)


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Return what was found, a sentence or two per form: the band at the largest number, the number that is enough, foreign images."""
    return [_sentence(found, form) for form in found["forms"]]


def present(found: Mapping[str, Any]) -> list[str]:
    """Return the metrics that were measured."""
    return [name for name in METRICS if name in found["rows"][0]["metrics"]]


def rows(found: Mapping[str, Any], metric: str) -> list[list[str]]:
    """Return a row per form, source and number of images."""
    return [_row(row, metric) for row in found["rows"]]


def foreign_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return by how much the figures of each further source differ from those of the first, a row per form, source and number."""
    return [
        [
            f"{entry['method']} {entry['bits']}",
            entry["calib"],
            str(entry["n"]),
            *(_moved(entry["metrics"][name], name) for name in present(found)),
        ]
        for entry in found["foreign"]
    ]


def foreign_columns(found: Mapping[str, Any]) -> list[str]:
    """Return the heads of ``foreign_rows``."""
    return [*COLUMNS[:3], *(QUANTITIES[name].label for name in present(found))]


def table(found: Mapping[str, Any]) -> str:
    """Return the sentences and the table of the disagreement for a terminal."""
    return "\n".join([*sentences(found), "", QUANTITIES["disagreement"].label, aligned([COLUMNS, *rows(found, "disagreement")])])


def remarks(found: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know beside the tables."""
    lines = [HOW]
    for source in found["calibration"]:
        n, share = max(source["shared"].items(), key=lambda item: int(item[0]))
        if share > 0.5:
            said = quantity(share, "fraction")
            lines.append(SHARED.format(n=n, size=f"{source['size']:,}", id=source["id"], share=said))
    if any(form["simulated"] for form in found["forms"]):
        lines.append("Bits below 8 are stored in INT8 and computed exactly; no runtime has faster kernels for them.")
    return lines


def subtitle(found: Mapping[str, Any]) -> str:
    """Return model and data in a line."""
    data, ood = found["dataset"], found["ood"]
    outside = f", {ood['n']:,} OOD images of {ood['id']}" if ood else ""
    draws = len(found["provenance"]["seeds"])
    return f"{found['provenance']['model']['id']}, {data['n']:,} test images of {data['id']}{outside}; {draws} draws each."


def markdown(found: Mapping[str, Any]) -> str:
    """Return ``calibration.md``."""
    parts = ["# Calibration images", *map(escaped, sentences(found)), escaped(subtitle(found))]
    for name in present(found):
        parts += [f"## {QUANTITIES[name].label}{level(found, name)}", markdown_table(COLUMNS, rows(found, name))]
    if found["foreign"]:
        parts += [f"## {against(found)}", markdown_table(foreign_columns(found), foreign_rows(found))]
    return "\n\n".join([*parts, "## How to read it", *map(escaped, remarks(found))]) + "\n"


def level(found: Mapping[str, Any], metric: str) -> str:
    """Return FP32's own figure in brackets, or nothing for a metric that compares with FP32."""
    own = found["fp32"].get(metric)
    return f" (FP32 {_value(own['value'], metric)})" if own else ""


def against(found: Mapping[str, Any]) -> str:
    """Return what the foreign sources are compared with, as a heading."""
    return escaped(f"Images of other sources instead of {found['foreign'][0]['against']}: difference of the means [95 % interval]")


def _sentence(found: Mapping[str, Any], form: Mapping[str, Any]) -> str:
    own = [row for row in found["rows"] if (row["method"], row["bits"]) == (form["method"], form["bits"])]
    first = found["calibration"][0]["id"]
    row = max((row for row in own if row["calib"] == first), key=lambda row: int(row["n"]))
    band, draws = row["metrics"]["disagreement"], len(row["metrics"]["disagreement"]["values"])
    inside = "lies within" if band["band_within_interval"] else "leaves"
    said = (
        f"{form['method']} {form['bits']}: calibrated on {row['n']} images of {first}, {_value(band['mean'], 'disagreement')} of the "
        f"predictions differ from FP32's. The band of {draws} draws, {_ends((band['min'], band['max']), 'disagreement')}, {inside} the "
        f"interval that {found['dataset']['n']:,} test images leave, {_ends(band['ci95'], 'disagreement')}."
    )
    others = [_foreign(entry) for entry in found["foreign"] if _same(entry, form) and entry["n"] == row["n"]]
    return " ".join([said, _enough(found, form, first), *_outside(row), *others])


def _enough(found: Mapping[str, Any], form: Mapping[str, Any], source: str) -> str:
    (entry,) = (entry for entry in found["enough"] if _same(entry, form) and entry["calib"] == source)
    if entry["n"] is None:
        return "No number of images measured here keeps every draw below the upper end of that interval."
    return f"From {entry['n']} images on no draw is above it."


def _outside(row: Mapping[str, Any]) -> list[str]:
    """Return in a sentence which other metrics the draws move further than the test images leave open; none where there is none."""
    bands = row["metrics"]
    beyond = [QUANTITIES[name].label for name in METRICS[1:] if name in bands and not bands[name]["band_within_interval"]]
    return [f"Beyond such an interval the draws move: {', '.join(beyond)}."] if beyond else []


def _foreign(entry: Mapping[str, Any]) -> str:
    moved = entry["metrics"]["disagreement"]
    low, high = moved["delta_ci95"]
    clear = moved["bands_apart"] and not low <= 0 <= high
    shown = "more than draws and test images explain" if clear else "which draws or test images can explain"
    return f"Images of {entry['calib']} instead change that by {difference(moved['delta'], 'fraction')} {_signed(moved)}, {shown}."


def _same(entry: Mapping[str, Any], form: Mapping[str, Any]) -> bool:
    return (entry["method"], entry["bits"]) == (form["method"], form["bits"])


def _row(row: Mapping[str, Any], metric: str) -> list[str]:
    band = row["metrics"][metric]
    compares = metric in {"disagreement", "cosine_centred"}
    ends = band["ci95"] if compares else band["delta_ci95"]
    wider = "the band" if band["max"] - band["min"] > ends[1] - ends[0] else "the interval"
    return [
        f"{row['method']} {row['bits']}",
        row["calib"],
        str(row["n"]),
        _value(band["mean"], metric),
        _ends((band["min"], band["max"]), metric),
        _spread(band["sd"], metric),
        "" if compares else difference(band["delta"], "fraction"),
        _ends(ends, metric) if compares else interval(ends, "fraction", signed=True),
        wider,
    ]


def _moved(moved: Mapping[str, Any], metric: str) -> str:
    apart = ", bands apart" if moved["bands_apart"] else ""
    if metric == "cosine_centred":
        return f"{moved['delta']:+.5f}".replace("-", "−") + apart
    return f"{difference(moved['delta'], 'fraction')} {_signed(moved)}{apart}"


def _signed(moved: Mapping[str, Any]) -> str:
    return interval(moved["delta_ci95"], "fraction", signed=True)


def _value(value: float, metric: str) -> str:
    return f"{value:.5f}".replace("-", "−") if metric == "cosine_centred" else f"{100 * value:.2f} %".replace("-", "−")


def _ends(ends: Sequence[float], metric: str) -> str:
    low, high = (_value(end, metric).removesuffix(" %") for end in ends)
    return f"{low} to {high}" if metric == "cosine_centred" else f"{low} to {high} %"


def _spread(sd: float, metric: str) -> str:
    return f"{sd:.1e}".replace("-", "−") if metric == "cosine_centred" else f"{100 * sd:.2f} pp"


def series(found: Mapping[str, Any], form: Mapping[str, Any], metric: str) -> dict[str, Sequence[tuple[int, Mapping[str, Any]]]]:
    """Return source -> (number of images, band) of one form and metric, for a plot."""
    own = [row for row in found["rows"] if _same(row, form)]
    return {
        source["id"]: sorted(
            ((row["n"], row["metrics"][metric]) for row in own if row["calib"] == source["id"]), key=lambda point: int(point[0])
        )
        for source in found["calibration"]
    }
