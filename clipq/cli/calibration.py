"""clipq calibration: how many calibration images a model needs, how much their draw matters, and what foreign ones do."""

from __future__ import annotations

import argparse
from pathlib import Path

from clipq.artifact import Bundle
from clipq.cli.options import add_json, add_output, add_quiet, add_resume, add_seed, comma_list, write_json_option
from clipq.cli.suite_options import add_resamples
from clipq.errors import UsageError
from clipq.files import locked, reading

EPILOG = """For every method, bits, source and number of images, --seeds calibration sets are drawn. Each makes the image tower anew from
the bundle's FP32 graph, and all of them answer the same test images, which are never drawn. Every figure has two spreads: the band
over the draws, and the 95 % interval of the test images. Images are decoded once; what was finished is used again after an
interruption. Methods that rewrite the tower (smoothquant, rotation, shift) load the checkpoint and need torch.

  clipq calibration bundle/ --calib wds:/data/own:train,imagefolder:/data/public --calib-n 16,64,256 --data wds:/data/own -o lab/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EPILOG
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that clipq-export made")
    parser.add_argument(
        "--calib",
        metavar="DATA,DATA",
        type=comma_list,
        required=True,
        help="data sets to draw calibration images from; the first is what the others are compared with",
    )
    parser.add_argument("--data", metavar="DATA", required=True, help="test images, labelled, e.g. wds:PATH:test")
    parser.add_argument("--ood", metavar="DATA", default="", help="OOD images, for the AUROC of MCM")
    parser.add_argument(
        "--calib-n", metavar="N,N", type=comma_list, default=("16", "64", "256"), help="numbers of calibration images (default: 16,64,256)"
    )
    parser.add_argument("--seeds", metavar="K", type=int, default=5, help="calibration sets drawn of each number (default: 5)")
    parser.add_argument(
        "--method",
        metavar="NAME,NAME",
        type=comma_list,
        default=("percentile",),
        help="calibrated methods, see clipq export --list-methods (default: percentile)",
    )
    parser.add_argument("--bits", metavar="W8A8,W4A8", type=comma_list, default=("W8A8",), help="bits of the methods (default: W8A8)")
    add_output(parser, "folder for calibration.json, calibration.md and calibration.html")
    limit = "use at most N test and N OOD images, drawn at random by --seed (default: 2000)"
    parser.add_argument("--limit", metavar="N", type=int, default=2000, help=limit)
    parser.add_argument("--batch-size", metavar="N", type=int, default=32, help="images of one inference (default: 32)")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: one per usable core)")
    add_resamples(parser)
    add_seed(parser)
    add_resume(parser)
    add_json(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Measure the draws, print the sentences, the table of the disagreement and where the page is; return 0."""
    import importlib.util

    from clipq.errors import missing_extra

    if importlib.util.find_spec("onnx") is None:
        raise missing_extra("onnx", "export")
    from clipq.calibration_lab.lab import calibration_lab
    from clipq.calibration_lab.options import LabOptions
    from clipq.calibration_lab.tell import table

    options = LabOptions(
        calib=args.calib,
        data=args.data,
        ood=args.ood,
        calib_n=_numbers(args.calib_n),
        seeds=args.seeds,
        methods=args.method,
        bits=args.bits,
        limit=args.limit,
        seed=args.seed,
        resume=args.resume,
        batch_size=args.batch_size,
        threads=args.threads,
        resamples=args.resamples,
    )
    bundle = Bundle.open(args.bundle)
    with reading(args.bundle), locked(args.output):
        found = calibration_lab(bundle, options, args.output)
    if args.json:
        write_json_option(args.json, found)
    if args.json != "-":
        print(table(found))
        print(f"Page: {args.output / 'calibration.html'}")
    return 0


def _numbers(words: tuple[str, ...]) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words)
    except ValueError:
        raise UsageError("--calib-n is wrong", found=",".join(words), expected="numbers with commas between them, e.g. 16,64,256") from None
