"""``clipq export MODEL -o DIR``, also ``clipq-export``: makes a bundle of an open_clip model."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipq.cli.classifiers import add_classifiers_option, classifiers_asked
from clipq.cli.methods import add_methods, add_training, asked_engines, list_methods
from clipq.cli.options import add_json, add_output, add_quiet, add_resume, add_seed, comma_list
from clipq.errors import UsageError, missing_extra
from clipq.files import write_json
from clipq.progress import note
from clipq.recipe import CALIBRATION_METHODS, TOWERS, Recipe

if TYPE_CHECKING:
    from clipq.artifact import Bundle
    from clipq.export.keep import ChooseKept

_EPILOG = """\
models:  ViT-B-32:openai (any open_clip architecture and weights; weights may be a file), hf-hub:ORG/NAME, local-dir:PATH, demo
engines: torch-fp32 (always there, the baseline)
         ort-fp32, ort-int8-dynamic, ort-int8-static                        ONNX Runtime on the CPU
         ort-cuda-fp32|fp16, ort-trt-fp32|fp16|int8                         ONNX Runtime on NVIDIA GPUs: CUDA, TensorRT provider
         trt-fp32|fp16|bf16|int8|fp8, trtrtx-fp32|fp16|bf16|int8|fp8        TensorRT, TensorRT-RTX: plans built for the target
data:    wds:PATH[:SPLIT], imagefolder:PATH, imglist:FILE, hf:PATH, synthetic:NAME

examples:
  clipq-export ViT-B-32:openai -o out/vit --calib imagefolder:photos/train --calib-n 512
  clipq-export ViT-B-32:openai -o out/jetson --engines trt-fp16,trt-int8 --graphs-only --calib imagefolder:photos/train
  clipq-export ViT-B-32:openai -o out/methods --calib imagefolder:photos/train --method smoothquant,gptq --bits W8A8,W4A8
  clipq-export --rebuild out/jetson -o out/here          (on the target: builds the plans there, without torch)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    default = Recipe(model="")
    parser.epilog = _EPILOG
    parser.add_argument("model", metavar="MODEL", nargs="?", default="", help="model id, e.g. ViT-B-32:openai")
    add_output(parser, "folder of the bundle; new or empty", required=False)
    parser.add_argument(
        "--engines",
        metavar="ID,ID",
        type=comma_list,
        default=(),
        help=f"engines to make (default: {','.join(default.engines)}; with --rebuild: all whose plans can be built here)",
    )
    parser.add_argument(
        "--towers",
        metavar="image|text|image,text",
        type=comma_list,
        default=default.towers,
        help=f"towers that get an engine's precision, of {' and '.join(TOWERS)}; the others stay FP32 (default: image)",
    )
    parser.add_argument(
        "--patch-tokens",
        action="store_true",
        help="give the image tower a second output, a feature per patch, for GL-MCM in clipq eval; CLIP's ViTs and ResNets have them",
    )
    add_methods(parser)
    _add_calibration(parser, default)
    _add_mixed(parser, default)
    add_training(parser, default)
    _add_plans(parser, default)
    add_classifiers_option(parser)
    add_seed(parser)
    add_resume(parser)
    add_json(parser)
    add_quiet(parser)


def _add_calibration(parser: argparse.ArgumentParser, default: Recipe) -> None:
    group = parser.add_argument_group("calibration of static INT8 and FP8")
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


def _add_mixed(parser: argparse.ArgumentParser, default: Recipe) -> None:
    group = parser.add_argument_group("mixed precision of static INT8 and FP8")
    group.add_argument(
        "--mha",
        metavar="fp16|int8",
        default=default.mha,
        help="products of attention: int8 quantizes them, fp16 leaves them to the rest's precision; measure both (default: fp16)",
    )
    group.add_argument("--sensitivity", action="store_true", help="rank the blocks by the damage of quantizing each alone")
    group.add_argument(
        "--max-drop",
        metavar="METRIC=VALUE",
        action="append",
        default=[],
        help="keep the most damaging blocks unquantized until this holds on the calibration images, e.g. acc1=0.01; repeatable",
    )
    group.add_argument("--calib-ood", metavar="DATA", default="", help="data id of OOD images for fpr95 in these two")


def _add_plans(parser: argparse.ArgumentParser, default: Recipe) -> None:
    group = parser.add_argument_group("plans of trt-* and trtrtx-* engines")
    group.add_argument(
        "--batch",
        metavar="MIN,OPT,MAX",
        type=_batch,
        default=default.batch,
        help=f"smallest, usual and largest batch (default: {','.join(map(str, default.batch))})",
    )
    group.add_argument("--graphs-only", action="store_true", help="make the portable graphs here; build the plans on the target")
    group.add_argument("--rebuild", metavar="BUNDLE", type=Path, help="instead of MODEL: build the plans of this bundle for this device")
    group.add_argument(
        "--compat",
        metavar="version,hardware",
        type=comma_list,
        default=default.compatibility,
        help="plans that other GPUs can load, or other TensorRT versions with the lean runtime of this one; costs speed",
    )
    group.add_argument(
        "--compute-capability",
        metavar="8.9,12.0",
        type=comma_list,
        default=default.compute_capabilities,
        help="GPUs that TensorRT-RTX builds for (default: every one from 8.0 that has the precision)",
    )


def _batch(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid batch {text!r}; expected MIN,OPT,MAX, e.g. 1,32,128") from None


def run(args: argparse.Namespace) -> int:
    """Export, or rebuild, and say where the bundle is; or list the methods."""
    if args.list_methods:
        print(list_methods())
        return 0
    if args.output is None:
        raise UsageError("no folder given", expected="-o DIR, new or empty")
    bundle = _rebuild(args) if args.rebuild else _export(args)
    _report(bundle, args)
    return 0


def _rebuild(args: argparse.Namespace) -> Bundle:
    if args.model:
        raise UsageError("--rebuild takes a bundle instead of a model", found=args.model)
    _refuse_export_options(args)
    from clipq.artifact import Bundle
    from clipq.engines.tensorrt.build import BuildOptions
    from clipq.export.rebuild import rebuild_bundle

    options = BuildOptions(batch=args.batch, compatibility=args.compat, compute_capabilities=args.compute_capability)
    return rebuild_bundle(Bundle.open(args.rebuild), args.engines, args.output, options, resume=args.resume)


def _refuse_export_options(args: argparse.Namespace) -> None:
    """The graphs of a bundle are made; options that would make others are not silently dropped."""
    default = Recipe(model="")
    asked = [
        f"--{name.replace('_', '-')}"
        for name in (
            "towers",
            "patch_tokens",
            "calib",
            "calib_n",
            "calib_method",
            "calib_sampling",
            "mha",
            "sensitivity",
            "calib_ood",
            "graphs_only",
            "seed",
            "method",
            "bits",
            *default.training,
        )
        if getattr(args, name) != getattr(default, name, ())
    ]
    asked += [name for name, given in (("--max-drop", args.max_drop), ("--classifier", args.classifier)) if given]
    if asked:
        names = ", ".join(asked)
        raise UsageError("--rebuild builds plans from the graphs that are there", found=names, fix="Drop these, or export anew.")


def _export(args: argparse.Namespace) -> Bundle:
    if not args.model:
        raise UsageError("no model given", expected="MODEL, e.g. ViT-B-32:openai, or --rebuild BUNDLE")
    for library in ("torch", "open_clip", "onnx"):
        if importlib.util.find_spec(library) is None:
            raise missing_extra(library, "export")
    recipe = Recipe(
        model=args.model,
        engines=asked_engines(args),
        towers=args.towers,
        patch_tokens=args.patch_tokens,
        calib=args.calib,
        calib_n=args.calib_n,
        calib_method=args.calib_method,
        calib_sampling=args.calib_sampling,
        mha=args.mha,
        sensitivity=args.sensitivity,
        max_drop=tuple(args.max_drop),
        calib_ood=args.calib_ood,
        batch=args.batch,
        graphs_only=args.graphs_only,
        compatibility=args.compat,
        compute_capabilities=args.compute_capability,
        seed=args.seed,
        **{name: getattr(args, name) for name in Recipe(model="").training},
    )
    from clipq.export.pipeline import complete, export_bundle

    asked = classifiers_asked(args.classifier, complete(recipe).calib if args.classifier else "")
    bundle = export_bundle(recipe, args.output, resume=args.resume, choose_kept=_search(recipe))
    if not asked:
        return bundle
    from clipq.evaluate.classifier_making import add_classifiers

    return add_classifiers(args.output, asked)


def _search(recipe: Recipe) -> ChooseKept | None:
    """Return the search for sensitive blocks when the recipe asks for one."""
    if not (recipe.sensitivity or recipe.max_drop):
        return None
    from clipq.sensitivity.search import choose_kept

    return choose_kept


def _report(bundle: Bundle, args: argparse.Namespace) -> None:
    if args.json == "-":
        print(json.dumps(_summary(bundle), indent=2))
    elif args.json:
        write_json(Path(args.json), _summary(bundle))
    note(f"{bundle.folder}: {', '.join(bundle.manifest.engines)}")
    if any(entry.graphs and not entry.towers for entry in bundle.manifest.engines.values()):
        note(f"Next, on the target: clipq-export --rebuild {bundle.folder} -o NEW")
    note(f"Next: clipq eval {bundle.folder} --data DATA -o REPORT")


def _summary(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.folder),
        "model": manifest.model.id,
        "recipe_sha256": manifest.recipe_sha256,
        "parent_sha256": manifest.parent_sha256,
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
