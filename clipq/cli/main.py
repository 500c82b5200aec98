"""Entry points: one table of commands, each loaded only when it is asked for; every error becomes one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from clipq import __version__
from clipq.errors import ClipqError, UsageError, unknown_name
from clipq.progress import set_quiet

# Each module has add_arguments(parser) and run(args) -> exit code; the text is the command's one-line help.
COMMANDS: dict[str, tuple[str, str]] = {
    "export": ("clipq.cli.export", "make a bundle: towers to ONNX, quantized graphs, engines"),
    "eval": ("clipq.cli.evaluate", "run the reliability suite on every engine of a bundle and compare with FP32 PyTorch"),
    "attribute": ("clipq.cli.attribute", "tell where between FP32 PyTorch and the deployed file an engine's loss arises"),
    "calibration": ("clipq.cli.calibration", "tell how many calibration images a model needs, and how much the draw of them matters"),
    "compare": ("clipq.cli.compare", "compare two reports, with gates and an exit code"),
    "score": ("clipq.cli.score", "compute the metrics of stored outputs (.npz or .csv)"),
    "bench": ("clipq.cli.bench", "measure latency, throughput, memory and size of every engine of a bundle"),
    "verify": ("clipq.cli.verify", "check on a device that a bundle does what it did where it was exported; needs no torch"),
    "pack": ("clipq.cli.pack", "pack a bundle into one file, the same bytes every time, signed where asked for"),
    "unpack": ("clipq.cli.unpack", "unpack such a file into a bundle folder, every byte checked before it appears"),
    "doctor": ("clipq.cli.doctor", "tell which runtimes and devices are usable here, and how to get the missing ones"),
    "demo": ("clipq.cli.demo", "the whole road on the embedded model and data, no network, a report at the end"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}", fix=f"See {self.prog} --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``clipq COMMAND ...`` and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _guard(lambda: _dispatch(arguments))


def export_main(argv: Sequence[str] | None = None) -> int:
    """Run ``clipq-export ...``, the same as ``clipq export ...``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _guard(lambda: _run_command("export", arguments, prog="clipq-export"))


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_overview())
        return 0
    if arguments[0] in {"-V", "--version"}:
        print(f"clipq {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        raise unknown_name("command", arguments[0], COMMANDS)
    return _run_command(arguments[0], arguments[1:], prog=f"clipq {arguments[0]}")


def _overview() -> str:
    lines = [f"clipq {__version__}: may this quantized CLIP ship?", "", "usage: clipq COMMAND [OPTIONS]", ""]
    lines += [f"  {name:<11} {summary}" for name, (_, summary) in COMMANDS.items()]
    lines += ["", "clipq COMMAND --help tells more. clipq-export is the same as clipq export."]
    lines += ["Exit codes: 0 ok, 1 error, 2 usage, 3 gate failed, 4 runtime or device missing, 5 refused (hash or trust), 130 interrupted."]
    return "\n".join(lines)


def _run_command(name: str, arguments: Sequence[str], *, prog: str) -> int:
    module_name, summary = COMMANDS[name]
    module = importlib.import_module(module_name)
    parser = _Parser(prog=prog, description=summary[0].upper() + summary[1:] + ".", formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    args = parser.parse_args(arguments)
    set_quiet(getattr(args, "quiet", False))
    code: int = module.run(args)
    return code


def _guard(command: Callable[[], int]) -> int:
    try:
        return command()
    except ClipqError as error:
        print(f"clipq: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("clipq: interrupted; what was finished is kept, run again with --resume", file=sys.stderr)
        return 130
    except MemoryError as error:
        print(f"clipq: out of memory; found {' '.join(str(error).split()) or 'no more to be had'}. Use a smaller batch.", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
