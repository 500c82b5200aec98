"""clipq bench: latency, throughput, memory and size of every engine of a bundle; needs only the runtimes of its engines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clipq.artifact import Bundle
from clipq.cli.options import add_json, add_output, add_quiet, add_trust, comma_list, write_json_option
from clipq.files import locked, reading, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that clipq-export made")
    add_output(parser, "also write bench.json into this folder", required=False)
    parser.add_argument("--engines", metavar="ENGINE,...", type=comma_list, default=(), help="which engines (default: all that run here)")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: one per usable core)")
    parser.add_argument("--bench-seconds", metavar="S", type=float, default=5.0, help="time per engine and scenario (default: 5)")
    parser.add_argument("--batch", metavar="N,...", type=_batch_sizes, default=(1, 32), help="images of one call (default: 1,32)")
    parser.add_argument("--cuda-graph", action="store_true", help="replay TensorRT plans as CUDA graphs (needs cuda-python)")
    add_trust(parser)
    add_json(parser)
    add_quiet(parser)


def _batch_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in comma_list(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid batch sizes {text!r}; expected N,N, e.g. 1,32") from None


def run(args: argparse.Namespace) -> int:
    """Measure, and print a table or JSON."""
    from clipq.evaluate.latency import bench_bundle

    bundle = Bundle.open(args.bundle, trust_plans=args.trust_engine)
    with reading(args.bundle):
        record = bench_bundle(
            bundle,
            args.engines,
            threads=args.threads,
            seconds=args.bench_seconds,
            batch_sizes=args.batch,
            uses_graphs=args.cuda_graph,
        )
    if args.output:
        with locked(args.output):
            write_json(args.output / "bench.json", record)
    if args.json:
        write_json_option(args.json, record)
    if args.json != "-":
        print(table(record))
    return 0


def table(record: dict[str, Any]) -> str:
    """Return one line per engine and scenario, with a note on how it was measured."""
    from clipq.evaluate.report.format import quantity

    width = max(18, *(len(engine_id) + 2 for engine_id in record["bench"]))
    lines = [f"{'engine':<{width}}{'scenario':<19}{'p50':>10}{'p90':>10}{'p99':>10}{'images/s':>10}{'n':>6}"]
    for engine_id, scenarios in record["bench"].items():
        for name, values in scenarios.items():
            if name == "artefact":
                continue
            times = "".join(f"{quantity(values[key], 'seconds'):>10}" for key in ("p50_s", "p90_s", "p99_s"))
            lines.append(f"{engine_id:<{width}}{name:<19}{times}{values['images_per_s']:>10.1f}{values['n']:>6}")
    lines += ["", f"{'engine':<{width}}{'size':>10}{'load':>10}{'peak memory':>14}"]
    for engine_id, scenarios in record["bench"].items():
        facts = scenarios["artefact"]
        sizes = f"{quantity(facts['size_bytes'], 'bytes'):>10}{quantity(facts['load_s'], 'seconds'):>10}"
        lines.append(f"{engine_id:<{width}}{sizes}{quantity(facts['peak_rss_bytes'], 'bytes'):>14}")
    return "\n".join([*lines, "", *_notes(record)])


def _notes(record: dict[str, Any]) -> list[str]:
    from clipq.engines.table import ENGINES

    notes = [f"{record['threads']} threads, engines interleaved; a percentile without enough calls is left out"]
    if any(name.endswith("-device") for scenarios in record["bench"].values() for name in scenarios):
        notes.append("-device: by events on the device, without copies; the others by the wall clock, memory to memory")
    simulated = [engine_id for engine_id in record["bench"] if engine_id in ENGINES and ENGINES[engine_id].simulated]
    if simulated:
        notes.append(f"{', '.join(simulated)}: computed in INT8, so speed and size are those of INT8")
    return notes
