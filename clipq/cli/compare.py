"""clipq compare: the difference between two reports or two engines, gates, and an exit code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clipq.cli.gates import add_gates, end_on_failure, gates_asked, write_for_ci
from clipq.cli.options import add_json, add_quiet, comma_list, write_json_option
from clipq.cli.suite_options import add_resamples
from clipq.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Compare two reports (A is the old one), two engines of one report (--engines a,b), or, with one report alone, its engines "
        "with its baseline. Two records of clipq verify, or a report and such a record, show what a device does otherwise than the host."
    )
    parser.add_argument("reports", metavar="REPORT", type=Path, nargs="+", help="report.json, verify.json or a folder of one; one or two")
    parser.add_argument(
        "--engines", metavar="ENGINE,...", type=comma_list, default=(), help="two engines of one report, or which engines of two reports"
    )
    add_gates(parser)
    add_resamples(parser)
    add_json(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, print the table, and raise GateFailedError when a gate fails that was asked for.

    Nothing is judged unless gates, a proof or a file for CI are asked for.
    """
    from clipq.evaluate.gates.presets import describe_gates, read_gates
    from clipq.evaluate.verdict import judge

    if args.resamples < 1:
        raise UsageError("--resamples is too small", found=args.resamples, expected="1 or more")
    gates = read_gates(args.fail_on, args.gates)
    comparison = _compare(args.reports, args.engines, args.gates, args.resamples)
    comparison["gates"], comparison["verdict"] = [], {}
    if gates_asked(args) or args.junit or args.summary:
        comparison["provenance"] = {"gates": describe_gates(gates)}
        comparison["gates"], comparison["verdict"] = judge(comparison, args.fail_on, args.gates)
    if args.json:
        write_json_option(args.json, comparison)
    write_for_ci(args, comparison)
    if args.json != "-":
        print(_text(comparison))
    if gates_asked(args):
        end_on_failure(comparison["gates"], require_proof=args.require_proof)
    return 0


def _compare(paths: list[Path], engines: tuple[str, ...], presets: list[str], resamples: int) -> dict[str, Any]:
    from clipq.evaluate.difference import between_engines, between_reports, of_one_report
    from clipq.evaluate.gates.presets import check_baseline
    from clipq.evaluate.report.read import read_report
    from clipq.evaluate.verify.read import is_verification

    if len(paths) > 2:
        raise UsageError("too many reports", found=len(paths), expected="one or two")
    if any(map(is_verification, paths)):
        return _compare_devices(paths, engines)
    stored = read_report(paths[0])
    known = {engine: str(entry.get("precision")) for engine, entry in stored.report["engines"].items()}
    if len(paths) == 2:
        second = read_report(paths[1])
        chosen = engines or tuple(second.report["engines"])
        check_baseline(presets, {engine: precision for engine, precision in known.items() if engine in chosen})
        return between_reports(stored, second, engines, resamples=resamples)
    if engines and len(engines) != 2:
        raise UsageError(
            "--engines with one report needs two engines", found=", ".join(engines), fix="Write --engines ort-fp32,ort-int8-static."
        )
    baseline = engines[0] if engines else stored.report["baseline"]
    check_baseline(presets, {baseline: known.get(baseline, "fp32")})  # one that is not there is an error of its own
    return between_engines(stored, *engines, resamples=resamples) if engines else of_one_report(stored)


def _compare_devices(paths: list[Path], engines: tuple[str, ...]) -> dict[str, Any]:
    from clipq.evaluate.verify.difference import between_records

    if len(paths) != 2:
        raise UsageError(
            "one record of clipq verify has nothing to be compared with", fix="Name the host's record first, then the device's."
        )
    return between_records(paths[0], paths[1], engines)


def _text(comparison: dict[str, Any]) -> str:
    if "verification" not in comparison:
        return summary(comparison)
    from clipq.cli.verification import verification_summary

    return verification_summary(comparison)


def summary(comparison: dict[str, Any]) -> str:
    """Return the differences as a table of plain text, then the gates."""
    from clipq.evaluate.report.names import METRICS, OOD_METRICS, SCORES, Quantity

    lines = [f"compared with {comparison['baseline']}; p-values are corrected (Holm) over the engines"]
    for engine in comparison["engines"]:
        for data, metrics in comparison["results"].get(engine, {}).items():
            lines += _block(f"{engine} on {data}", [(METRICS[key], entry) for key, entry in metrics.items()])
        for pair, scores in comparison["ood"].get(engine, {}).items():
            found: list[tuple[Quantity, dict[str, Any]]] = []
            for score, metrics in scores.items():
                name = SCORES[score].label if score in SCORES else score
                found += [
                    (OOD_METRICS[key].named(f"{name} {OOD_METRICS[key].label}"), metrics[key]) for key in ("auroc",) if key in metrics
                ]
            lines += _block(f"{engine} on {pair.replace('|', ' against ')}", found)
    gates = [f"{gate['outcome']}: {gate['engine']}: {gate['why']} ({gate['rule']})" for gate in comparison["gates"]]
    return "\n".join([*lines, "", *gates] if gates else lines)


def _block(title: str, entries: list[tuple[Any, dict[str, Any]]]) -> list[str]:
    from clipq.evaluate.report.format import p_value, quantity
    from clipq.evaluate.report.tables import measured_cell

    rows = []
    for kind, entry in entries:
        if entry["delta"] is not None and entry["value"] is not None:
            cell = measured_cell(entry, kind)
            before = quantity(entry["value"] - entry["delta"], kind.unit)
            remark = cell.word + ("" if entry.get("paired", True) else ", unpaired")
            corrected = entry.get("p_value_holm")
            p = p_value(entry["p_value"] if corrected is None else corrected)
            rows.append((kind.label, before, cell.value, cell.delta, cell.interval, p, remark))
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return [f"\n{title}"] + [
        "  " + "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[6]]) for row in rows
    ]
