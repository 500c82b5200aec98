"""clipq doctor: which runtimes and devices are usable here, and how to get the missing ones."""

from __future__ import annotations

import argparse
import importlib
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata

from clipq import __version__
from clipq.cli.options import add_json, write_json_option
from clipq.engines.onnxruntime.providers import CUDA, TENSORRT, installed_builds, require_provider
from clipq.engines.tensorrt.adapter import load_api
from clipq.engines.tensorrt.cuda import BINDINGS, installed
from clipq.engines.tensorrt.device import require_device
from clipq.errors import MissingRuntimeError
from clipq.machine import describe_machine

RUNTIMES = ("torch", "onnxruntime", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True)
class Finding:
    """One runtime or device: usable or not, what is there, and what to do when it is not."""

    name: str
    usable: bool
    found: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Look at everything, print it, and end with 4 when no engine at all can run here."""
    machine = describe_machine()
    findings = [check() for check in CHECKS]
    if args.json:
        write_json_option(args.json, {"clipq": __version__, "machine": machine, "findings": [asdict(finding) for finding in findings]})
    if args.json != "-":
        print(_table(machine, findings))
    if not any(finding.usable for finding in findings if finding.name in RUNTIMES):
        raise MissingRuntimeError("no engine can run here", found=f"none of {', '.join(RUNTIMES)}", fix="Run: pip install 'clipq[cpu]'")
    return 0


def _table(machine: dict[str, object], findings: list[Finding]) -> str:
    lines = [f"clipq {__version__} on Python {platform.python_version()}, {machine['cpu']}, {machine['cores']} cores", ""]
    for finding in findings:
        lines.append(f"  {'ok  ' if finding.usable else 'no  '}{finding.name:<14}{finding.found}")
        if finding.fix:
            lines.append(f"  {'':<18}{finding.fix}")
    return "\n".join(lines)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _library(name: str, distribution: str, extra: str, why: str) -> Finding:
    version = _version(distribution)
    if version is None:
        return Finding(name, False, f"not installed ({why})", f"pip install 'clipq[{extra}]'")
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken install raises anything at all, and telling it is the point
        return Finding(name, False, f"{version}, but it does not load: {error}", f"pip install --force-reinstall 'clipq[{extra}]'")
    return Finding(name, True, version)


def _onnxruntime() -> Finding:
    builds = installed_builds()
    if not builds:
        return Finding("onnxruntime", False, "not installed (runs the ort-* engines)", "pip install 'clipq[cpu]' or 'clipq[gpu]'")
    found = _library("onnxruntime", next(iter(builds)), "cpu", "")
    if not found.usable:
        return found
    providers = ", ".join(importlib.import_module("onnxruntime").get_available_providers())
    fix = "Two builds share one module: uninstall both, then install one." if len(builds) == 2 else ""
    return Finding("onnxruntime", True, f"{' and '.join(builds.values())} with {providers}", fix)


def _provider(name: str, provider: str) -> Finding:
    if not _cuda().usable:
        fix = (
            ""
            if "onnxruntime-gpu" in installed_builds()
            else "They also take the other build: pip install 'clipq[gpu]', onnxruntime removed first"
        )
        return Finding(name, False, f"no CUDA device (runs the {name}-* engines)", fix)
    try:
        require_provider(provider)
    except MissingRuntimeError as error:
        return Finding(name, False, str(error))
    return Finding(name, True, provider)


def _torch() -> Finding:
    return _library("torch", "torch", "export", "exports models and runs the torch-fp32 baseline")


def _open_clip() -> Finding:
    version = _version("open_clip_torch")
    if version is None:
        return Finding("open_clip", False, "not installed (loads checkpoints)", "pip install 'clipq[export]'")
    from clipq.engines.torch.compat import import_open_clip

    try:
        import_open_clip()
    except Exception as error:  # noqa: BLE001 - as above
        return Finding("open_clip", False, f"{version}, but it does not load: {error}", "pip install --force-reinstall 'clipq[export]'")
    return Finding("open_clip", True, version)


def _report() -> Finding:
    missing = [name for name in ("jinja2", "pyarrow") if _version(name) is None]
    if missing:
        return Finding(
            "report", False, f"{', '.join(missing)} not installed (write report.html and samples.parquet)", "pip install 'clipq[report]'"
        )
    return Finding("report", True, "jinja2, pyarrow")


def _zstd() -> Finding:
    return replace(_library("backports.zstd", "backports.zstd", "pack", "packs and unpacks bundles"), name="zstd")


def _cuda() -> Finding:
    try:
        device = require_device()
    except MissingRuntimeError as error:
        return Finding("cuda", False, str(error))
    memory = f"{device.memory_bytes / 1e9:.1f} GB"
    return Finding("cuda", True, f"{device.name}, compute capability {device.sm}, {memory}, driver {device.driver}, CUDA {device.cuda}")


def _binding() -> Finding:
    here = [name for name in BINDINGS if installed(name)]
    if not here:
        fix = "pip install cuda-python, of the major version of your CUDA (12 on JetPack 6); or install pycuda, which needs a compiler"
        return Finding("cuda binding", False, "neither cuda-python nor pycuda is installed (run the trt-* engines)", fix)
    version = _version("cuda-bindings" if here[0] == "cuda-python" else here[0])
    return Finding("cuda binding", True, f"{here[0]} {version}{'; pycuda is here too' if len(here) == 2 else ''}")


def _tensorrt(runtime: str, engines: str) -> Finding:
    try:
        title = load_api(runtime).title
    except MissingRuntimeError as error:
        return Finding(runtime, False, f"{error} (runs the {engines} engines)")
    if not _cuda().usable:
        return Finding(runtime, False, f"{title}, but no CUDA device (runs the {engines} engines)")
    return Finding(runtime, True, title)


CHECKS: tuple[Callable[[], Finding], ...] = (
    _torch,
    _open_clip,
    _onnxruntime,
    _report,
    _zstd,
    partial(_library, "cryptography", "cryptography", "sign", "signs packs and checks their signatures"),
    _cuda,
    _binding,
    partial(_provider, "ort-cuda", CUDA),
    partial(_provider, "ort-trt", TENSORRT),
    partial(_tensorrt, "tensorrt", "trt-*"),
    partial(_tensorrt, "tensorrt-rtx", "trtrtx-*"),
)
