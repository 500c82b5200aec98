"""clipq attribute: where between FP32 PyTorch and the deployed file an engine's loss arises."""

from __future__ import annotations

import argparse
from pathlib import Path

from clipq.artifact import Bundle
from clipq.cli.options import add_json, add_limit, add_output, add_quiet, add_resume, add_seed, add_trust, write_json_option
from clipq.files import locked, reading

EPILOG = """stages, each compared with the one before and with FP32 PyTorch on the same images:
  FP32 PyTorch          open_clip's own preprocessing
  preprocessing         our pixels instead of torchvision's
  FP32 graph            ONNX Runtime on the exported graph
  FP16 graph            every result rounded to FP16 (BF16 for bf16 engines), nothing quantized
  weights alone         the engine's quantized weights, activations in FP32
  activations alone     the engine's quantized activations, weights in FP32
  text tower alone      only where the engine quantizes the text tower
  quantized graph       all that is quantized together, products simulated in FP32
  as it runs            the deployed file, on a CPU with exact integer products
  ONNX Runtime's defaults
                        the same opened without clipq: on x86 without VNNI its integer kernels saturate

Stages that an engine does not have are left out, with the reason. Graphs of all stages are open at once; images are decoded once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EPILOG
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that clipq-export made")
    parser.add_argument("--data", metavar="DATA", required=True, help="data set to classify, e.g. wds:PATH:test")
    parser.add_argument("--engine", metavar="ENGINE", default="ort-int8-static", help="which engine (default: ort-int8-static)")
    add_output(parser, "folder for attribution.json, attribution.md and attribution.html")
    parser.add_argument(
        "--no-fp16", action="store_true", help="leave out the FP16 graph where the engine does not compute in it: it is slow"
    )
    add_trust(parser)
    parser.add_argument("--batch-size", metavar="N", type=int, default=32, help="images of one inference (default: 32)")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: one per usable core)")
    add_limit(parser)
    add_seed(parser)
    add_resume(parser)
    add_json(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Measure the stages, print the table and where the page is; return 0."""
    import importlib.util

    from clipq.errors import missing_extra

    if importlib.util.find_spec("onnx") is None:
        raise missing_extra("onnx", "export")
    from clipq.attribution.attribute import AttributeOptions, attribute_engine
    from clipq.attribution.tell import table

    options = AttributeOptions(
        data=args.data,
        engine=args.engine,
        limit=args.limit,
        seed=args.seed,
        resume=args.resume,
        batch_size=args.batch_size,
        threads=args.threads,
        fp16=not args.no_fp16,
    )
    bundle = Bundle.open(args.bundle, trust_plans=args.trust_engine)
    with reading(args.bundle), locked(args.output):
        found = attribute_engine(bundle, options, args.output)
    if args.json:
        write_json_option(args.json, found)
    if args.json != "-":
        print(table(found))
        print(f"Page: {args.output / 'attribution.html'}")
    return 0
