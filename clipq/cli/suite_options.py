"""``--suite``, ``--root`` and ``--list-suites``: a suite gives the options of ``clipq eval`` that the command line does not."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipq.errors import ClipqError, UsageError

_HELP = {
    "suite": "which data, limits and gates: quick, standard, full or another of --list-suites, or a file of your own, FILE.yaml; an "
    "option given beside it takes the place of the suite's",
    "root": "folder that holds the data sets of the suite; sets that are not there are left out, and the report says so",
    "list": "print the suites that come with clipq, and exit",
}


class _ListSuites(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        _values: str | Sequence[Any] | None,
        _option: str | None = None,
    ) -> None:
        from clipq.evaluate.suites.read import describe_suites

        print(describe_suites())
        parser.exit()


def add_resamples(parser: argparse.ArgumentParser) -> None:
    """Add ``--resamples``."""
    parser.add_argument(
        "--resamples", metavar="N", type=int, default=2000, help="bootstrap resamples behind every interval (default: 2000)"
    )


def add_suite(parser: argparse.ArgumentParser) -> None:
    """Add the options; call it last, because it takes the defaults of all others into its own keeping.

    An option then is None where the command line does not name it, and ``apply_suite`` fills it from the suite or with its default.
    """
    parser.add_argument("--suite", metavar="SUITE", help=_HELP["suite"])
    parser.add_argument("--root", metavar="DIR", type=Path, help=_HELP["root"])
    parser.add_argument("--list-suites", action=_ListSuites, nargs=0, help=_HELP["list"])
    kept = {action.dest: action for action in _from_suites(parser)}
    parser.set_defaults(suite_actions=kept, suite_defaults={name: action.default for name, action in kept.items()})
    for action in kept.values():
        action.default = None
        action.required = False


def apply_suite(args: argparse.Namespace) -> Mapping[str, Any] | None:
    """Fill the options that were not given, in place, and return ``provenance["suite"]``; None without ``--suite``.

    Raises:
        UsageError: The suite cannot be read or used, or ``--root`` stands without it.
    """
    found, record = _options_of(args)
    for name, default in args.suite_defaults.items():
        if getattr(args, name) is None:
            action = args.suite_actions[name]
            setattr(args, name, _as_given(action, default, found[name], args.suite) if name in found else default)
    if not args.data and not args.shift and not args.spurious:
        raise UsageError("no data set to evaluate on", fix="Name some with --data, or a suite with --suite.")
    return record


def _from_suites(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    from clipq.evaluate.suites.recipe import KEYS

    return [action for action in parser._actions if action.dest in KEYS]  # noqa: SLF001 - argparse has no other way to list them


def _options_of(args: argparse.Namespace) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    if args.suite is None:
        if args.root is not None:
            raise UsageError("--root belongs to a suite, and none is named", fix="Name one with --suite.")
        return {}, None
    from clipq.evaluate.suites.read import read_suite
    from clipq.evaluate.suites.resolve import resolve

    given = {name for name in args.suite_defaults if getattr(args, name) is not None}
    resolved = resolve(read_suite(args.suite), args.root, given)
    return resolved.options, {**resolved.record, "replaced": sorted(given)}


def _as_given(action: argparse.Action, default: Any, value: Any, suite: str) -> Any:
    """Return the value of a suite as the option itself would have read it."""
    texts = [str(item) for item in value] if isinstance(value, tuple) else [str(value)]
    if isinstance(value, bool) or isinstance(default, list):  # a flag, or an option that may be given several times
        return value if isinstance(value, bool) else texts
    try:
        read: Any = action.type or str
        return read(",".join(texts))
    except (ValueError, argparse.ArgumentTypeError, ClipqError) as error:
        raise UsageError(f"{action.dest} of the suite {suite} is wrong", found=error) from error
