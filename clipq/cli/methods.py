"""The options of ``clipq export`` about quantization methods: which, at which bits, and the list of all."""

from __future__ import annotations

import argparse

from clipq.cli.options import comma_list
from clipq.errors import UsageError
from clipq.methods import BITS, METHODS, W8A8, engine_ids
from clipq.recipe import QAT_DEVICES, QAT_TRAINED, Recipe


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


def add_training(parser: argparse.ArgumentParser, default: Recipe) -> None:
    """Add the options of methods with training, each the name of a recipe's field."""
    group = parser.add_argument_group(f"training of {', '.join(name for name, method in METHODS.items() if method.family == 'qat')}")
    group.add_argument("--qat-data", metavar="DATA", default="", help="pairs to train on (default: the calibration data)")
    for name, what in (
        ("pairs", "how many pairs; a fifth as many more are held out"),
        ("steps", "training steps"),
        ("batch", "pairs per step"),
        ("every", "a row of the training table and a saved state every so many steps"),
    ):
        number = getattr(default, f"qat_{name}")
        group.add_argument(f"--qat-{name}", metavar="N", type=int, default=number, help=f"{what} (default: {number})")
    group.add_argument(
        "--qat-train",
        metavar="|".join(QAT_TRAINED),
        default=default.qat_train,
        help=f"all: weights and quantizers; scales: quantizers alone (default: {default.qat_train})",
    )
    for name, what in (("lr", "of the weights"), ("scale-lr", "of what quantizers learn, relative")):
        rate = getattr(default, f"qat_{name.replace('-', '_')}")
        group.add_argument(f"--qat-{name}", metavar="X", type=float, default=rate, help=f"peak learning rate {what} (default: {rate:g})")
    group.add_argument(
        "--qat-device",
        metavar="|".join(QAT_DEVICES),
        default=default.qat_device,
        help=f"where to train; auto is CUDA where PyTorch has it (default: {default.qat_device})",
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
