"""The tables of docs/results/photographs.md, from the reports that ``photographs.py`` makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
ENGINES = ("torch-fp32", "ort-fp32", "ort-int8-dynamic", "ort-int8-static")
QUANTIZED = ENGINES[2:]
SCORES = ("mcm", "gl_mcm", "msp", "maxlogit", "energy_cos", "energy_logit", "entropy", "neglabel")
TRANSFERRED = ("mcm", "gl_mcm", "maxlogit", "energy_logit", "neglabel")
EXPLAINED = "Values in percent; in parentheses the paired difference from `torch-fp32` in percent points with its 95 % interval."


def tables(clean: Mapping[str, Report], tuned: Mapping[str, Report], noisy: Mapping[str, Report], ood_id: str) -> str:
    """Return all tables and what made them as Markdown.

    Args:
        clean: Model -> its report on the images as they are.
        tuned: Model -> its report with a logit scale fitted per engine.
        noisy: Model -> its report with corrupted copies.
        ood_id: Folder name of the ID data set whose OOD tables are shown.
    """
    parts = [recorded(next(iter(clean.values()))), EXPLAINED]
    parts.append(
        _table("model | data | engine | top-1 | ECE-15 | confidence - accuracy | NLL | disagreement % | centred cosine", classified(clean))
    )
    parts.append("One logit scale per engine, fitted on Imagenette (`--tune-scale`); ECE-15 before and after:")
    parts.append(_table("model | data | engine | logit scale | ECE-15 | ECE-15 with the tuned scale", scaled(tuned)))
    parts.append(f"OOD detection, AUROC, in-distribution {ood_id}:")
    parts.append(_table(" | ".join(["model | OOD | engine", *SCORES]), detected(clean, ood_id)))
    parts.append(
        f"The threshold that keeps 95 % of {ood_id} in FP32, applied to the quantized engine: share of ID kept / of OOD let in, in percent:"
    )
    parts.append(_table(" | ".join(["model | OOD | engine", *TRANSFERRED]), transferred(clean, ood_id)))
    parts.append(noise_words(next(iter(noisy.values()))))
    parts.append(_table("model | data | engine | top-1, clean | mean error | mCE | relative mCE", corrupted(noisy)))
    parts.append("Signal-to-noise ratio in dB by rank of the FP32 embeddings' SVD:")
    parts.append(_table(" | ".join(["model | data | engine | effective rank", *_bands(next(iter(clean.values())))]), spectral(clean)))
    return "\n\n".join(parts)


def recorded(report: Report) -> str:
    """Return date, machine and versions."""
    head = report["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    return f"Recorded {head['created']} on {head['device']['cpu']}, {head['device']['cores']} cores; {versions}."


def short(data_id: str) -> str:
    """Return a data set's folder name: ``wds:/somewhere/cifar10:test`` is ``cifar10``."""
    return data_id.split(":")[1].rsplit("/", 1)[-1]


def classified(reports: Mapping[str, Report]) -> list[list[str]]:
    """Return one row per model, data set and engine: accuracy, calibration and agreement with the baseline."""
    rows = []
    for model, data, engine, metrics in _results(reports, ENGINES):
        paired = reports[model]["paired"].get(engine, {}).get(data)
        agreement = [f"{100 * paired['disagreement']:.2f}", f"{paired['cosine_centred_mean']:.4f}"] if paired else ["", ""]
        values = [points(metrics[name]) for name in ("acc1", "ece15", "signed_gap")]
        rows.append([model, short(data), engine, *values, f"{metrics['nll']['value']:.3f}", *agreement])
    return rows


def scaled(reports: Mapping[str, Report]) -> list[list[str]]:
    """Return one row per model, data set and engine: its ECE-15 as exported, and with a logit scale of its own."""
    rows = []
    for model, data, engine, metrics in _results(reports, ("torch-fp32", *QUANTIZED)):
        arm = f"{engine}+scale"
        scale = reports[model]["engines"][arm]["logit_scale"]
        rows.append(
            [model, short(data), engine, f"{scale:.2f}", points(metrics["ece15"]), points(reports[model]["results"][arm][data]["ece15"])]
        )
    return rows


def detected(reports: Mapping[str, Report], id_set: str) -> list[list[str]]:
    """Return one row per model, OOD set and engine: AUROC by score."""
    found = _pairs(reports, id_set, ("torch-fp32", *QUANTIZED))
    return [
        [model, short(pair.split("|")[1]), engine, *(points(scores[name]["auroc"]) for name in SCORES)]
        for model, pair, engine, scores in found
    ]


def transferred(reports: Mapping[str, Report], id_set: str) -> list[list[str]]:
    """Return one row per model, OOD set and quantized engine: what FP32's threshold keeps and lets in."""
    rows = []
    for model, pair, engine, scores in _pairs(reports, id_set, QUANTIZED):
        cells = [
            f"{100 * scores[name]['tpr_transfer']['value']:.2f} / {100 * scores[name]['fpr_transfer']['value']:.2f}" for name in TRANSFERRED
        ]
        rows.append([model, short(pair.split("|")[1]), engine, *cells])
    return rows


def noise_words(report: Report) -> str:
    """Return which corruptions and severities stand behind the noise table."""
    part = next(iter(next(iter(report["robustness"].values()))["noise"].values()))
    names, severities = list(part["corruptions"]), part["severities"]
    return (
        f"{len(names)} corruptions, drawn here (`-synth`), severities {', '.join(map(str, severities))}, "
        f"{part['mean_error']['n']:,} images of each set. mCE: errors divided by those of `torch-fp32` on the same altered images."
    )


def corrupted(reports: Mapping[str, Report]) -> list[list[str]]:
    """Return one row per model, data set and engine: the errors on corrupted copies."""
    rows = []
    for model, report in reports.items():
        for data in next(iter(report["robustness"].values()))["noise"]:
            for engine in ("torch-fp32", *QUANTIZED):
                part = report["robustness"][engine]["noise"][data]
                ratios = [_ratio(part[name]) for name in ("mce", "relative_mce")]
                rows.append(
                    [model, short(data), engine, points(report["results"][engine][data]["acc1"]), points(part["mean_error"]), *ratios]
                )
    return rows


def spectral(reports: Mapping[str, Report]) -> list[list[str]]:
    """Return one row per model, data set and quantized engine: signal-to-noise ratio by rank."""
    rows = []
    for model, report in reports.items():
        for data in next(iter(report["results"].values())):
            for engine in QUANTIZED:
                entry = report["spectral"][engine][data]
                noise = ["" if band["sqnr_db"] is None else f"{band['sqnr_db']:.1f}" for band in entry["bands"]]
                rows.append([model, short(data), engine, f"{entry['effective_rank']:.1f}", *noise])
    return rows


def points(entry: Mapping[str, Any]) -> str:
    """Return a fraction in percent, with its paired delta and interval in percent points."""
    text = f"{100 * entry['value']:.2f}"
    return text if entry["delta"] is None else f"{text} ({100 * entry['delta']:+.2f} {_ends(entry['delta_ci95'], 100, '+.2f')})"


def _ratio(entry: Mapping[str, Any]) -> str:
    return "" if entry["value"] is None else f"{entry['value']:.4f} {_ends(entry['ci95'], 1, '.4f')}"


def _ends(ends: Sequence[float] | None, factor: float, form: str) -> str:
    return "" if ends is None else f"[{factor * ends[0]:{form}}, {factor * ends[1]:{form}}]"


def _results(reports: Mapping[str, Report], engines: Sequence[str]) -> Iterable[tuple[str, str, str, Any]]:
    for model, report in reports.items():
        for data in next(iter(report["results"].values())):
            for engine in engines:
                yield model, data, engine, report["results"][engine][data]


def _pairs(reports: Mapping[str, Report], id_set: str, engines: Sequence[str]) -> Iterable[tuple[str, str, str, Any]]:
    for model, report in reports.items():
        for pair in next(iter(report["ood"].values())):
            if short(pair.split("|")[0]) == id_set:
                for engine in engines:
                    yield model, pair, engine, report["ood"][engine][pair]


def _bands(report: Report) -> list[str]:
    entry = next(iter(next(iter(report["spectral"].values())).values()))
    return [f"ranks {band['ranks'][0]} to {band['ranks'][1] - 1}" for band in entry["bands"]]


def _table(head: str, rows: Sequence[Sequence[str]]) -> str:
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|" + "---|" * columns, *(f"| {' | '.join(row)} |" for row in rows)])
