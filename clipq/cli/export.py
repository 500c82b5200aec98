"""``clipq export MODEL -o DIR``, also ``clipq-export``: makes a bundle of an open_clip model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipq.cli.options import add_json, add_output, add_quiet, add_resume, add_seed, comma_list
from clipq.files import write_json
from clipq.progress import note
from clipq.recipe import CALIBRATION_METHODS, TOWERS, Recipe

if TYPE_CHECKING:
    from clipq.artifact import Bundle

_EPILOG = """\
models:  ViT-B-32:openai (any open_clip architecture and weights; weights may be a file), hf-hub:ORG/NAME, local-dir:PATH, demo
engines: torch-fp32 (always there, the baseline), ort-fp32, ort-int8-dynamic, ort-int8-static
data:    wds:PATH[:SPLIT], imagefolder:PATH, imglist:FILE, hf:PATH, synthetic:NAME

example: clipq-export ViT-B-32:openai -o out/vit --calib imagefolder:photos/train --calib-n 512"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    default = Recipe(model="")
    parser.epilog = _EPILOG
    parser.add_argument("model", metavar="MODEL", help="model id, e.g. ViT-B-32:openai")
    add_output(parser, "folder of the bundle; new or empty")
    parser.add_argument(
        "--engines",
        metavar="ID,ID",
        type=comma_list,
        default=default.engines,
        help=f"engines to make (default: {','.join(default.engines)})",
    )
    parser.add_argument(
        "--towers",
        metavar="image|text|image,text",
        type=comma_list,
        default=default.towers,
        help=f"towers that INT8 engines quantize, of {' and '.join(TOWERS)}; the others stay FP32 (default: image)",
    )
    _add_calibration(parser, default)
    add_seed(parser)
    add_resume(parser)
    add_json(parser)
    add_quiet(parser)


def _add_calibration(parser: argparse.ArgumentParser, default: Recipe) -> None:
    group = parser.add_argument_group("calibration of ort-int8-static")
    group.add_argument("--calib", metavar="DATA", default="", help="data id of the calibration images; not of those you evaluate on")
    group.add_argument("--calib-n", metavar="N", type=int, default=default.calib_n, help=f"how many images (default: {default.calib_n})")
    group.add_argument(
        "--calib-method",
        metavar="NAME",
        default=default.calib_method,
        help=f"how activation ranges are chosen: {', '.join(CALIBRATION_METHODS)} (default: {default.calib_method})",
    )
    group.add_argument(
        "--calib-sampling",
        metavar="NAME",
        choices=("random", "balanced"),
        default=default.calib_sampling,
        help=f"random, or balanced for the same number per class (default: {default.calib_sampling})",
    )


def run(args: argparse.Namespace) -> int:
    """Export and say where the bundle is."""
    recipe = Recipe(
        model=args.model,
        engines=args.engines,
        towers=args.towers,
        calib=args.calib,
        calib_n=args.calib_n,
        calib_method=args.calib_method,
        calib_sampling=args.calib_sampling,
        seed=args.seed,
    )
    from clipq.export.pipeline import export_bundle

    bundle = export_bundle(recipe, args.output, resume=args.resume)
    _report(bundle, args)
    return 0


def _report(bundle: Bundle, args: argparse.Namespace) -> None:
    if args.json == "-":
        print(json.dumps(_summary(bundle), indent=2))
    elif args.json:
        write_json(Path(args.json), _summary(bundle))
    note(f"{bundle.folder}: {', '.join(bundle.manifest.engines)}")
    note(f"Next: clipq eval {bundle.folder} --data DATA -o REPORT")


def _summary(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.folder),
        "model": manifest.model.id,
        "recipe_sha256": manifest.recipe_sha256,
        "parity": manifest.recipe["parity"],
        "engines": {
            name: {
                "precision": entry.precision,
                "quantized": list(entry.quantized),
                "size_bytes": sum(
                    manifest.files[name].size_bytes
                    for tower in entry.towers.values()
                    for name in (tower, f"{tower}.data")
                    if name in manifest.files
                ),
            }
            for name, entry in manifest.engines.items()
        },
    }
