"""The options of ``clipq export`` about quantization methods: which, at which bits, and the list of all."""

from __future__ import annotations

import argparse

from clipq.cli.options import comma_list
from clipq.errors import UsageError
from clipq.methods import BITS, METHODS, W8A8, engine_ids
from clipq.recipe import Recipe


def add_methods(parser: argparse.ArgumentParser) -> None:
    """Add ``--method``, ``--bits`` and ``--list-methods``."""
    group = parser.add_argument_group("quantization methods: engines ort-<bits>-<method>, beside those of --engines")
    group.add_argument(
        "--method", metavar="NAME,NAME", type=comma_list, default=(), help="methods, e.g. smoothquant,gptq; see --list-methods"
    )
    group.add_argument(
        "--bits",
        metavar="W8A8,W4A8",
        type=comma_list,
        default=(),
        help=f"bits of the methods: {', '.join(BITS)} (default: W8A8; for weight-only methods W8A32,W4A32)",
    )
    group.add_argument(
        "--list-methods", action="store_true", help="print every method with its source, its bits, what it needs and what runs it"
    )


def asked_engines(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the engines that are named, or the usual ones, and those of the methods.

    Raises:
        UsageError: A method or bits are unknown, or do not go together.
    """
    named = args.engines or Recipe(model="").engines
    if args.bits and not args.method:
        raise UsageError("--bits are those of a method", found=",".join(args.bits), fix="Name some with --method; see --list-methods.")
    weights_alone = [name for name in args.method if name in METHODS and METHODS[name].family == "weight-only"]
    others = [name for name in args.method if name not in weights_alone]
    found = engine_ids(others, args.bits or (str(W8A8),)) + engine_ids(weights_alone, args.bits or METHODS["rtn"].bits)
    return tuple(dict.fromkeys([*named, *found]))


def list_methods() -> str:
    """Return a table of the methods, one paragraph each."""
    lines = []
    for method in METHODS.values():
        lines += [f"{method.name} ({method.family}): {method.what}", f"  {method.source}"]
        lines += [f"  bits {', '.join(method.bits)}; needs {method.needs}; runs on {method.runtimes}"]
    lines += [
        "",
        "Below 8 bits (but for W4A32) no runtime has kernels: such graphs compute the same numbers in INT8 and say simulated: true.",
    ]
    return "\n".join(lines)
