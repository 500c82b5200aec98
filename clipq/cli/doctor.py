"""clipq doctor: which runtimes and devices are usable here, and how to get the missing ones."""

from __future__ import annotations

import argparse
import importlib
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata

from clipq import __version__
from clipq.cli.options import add_json, write_json_option
from clipq.errors import MissingRuntimeError
from clipq.machine import describe_machine


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
    if not any(finding.usable for finding in findings if finding.name in {"torch", "onnxruntime"}):
        raise MissingRuntimeError("no engine can run here", found="neither onnxruntime nor torch", fix="Run: pip install 'clipq[cpu]'")
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
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if not both:
        return Finding("onnxruntime", False, "not installed (runs the ort-* engines)", "pip install 'clipq[cpu]' or 'clipq[gpu]'")
    found = _library("onnxruntime", both[0], "cpu", "")
    if not found.usable:
        return found
    providers = ", ".join(importlib.import_module("onnxruntime").get_available_providers())
    fix = "Two builds share one module: uninstall both, then install one." if len(both) == 2 else ""
    return Finding("onnxruntime", True, f"{found.found} with {providers}", fix)


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


def _cuda() -> Finding:
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding("cuda", False, "no NVIDIA driver (libcuda.so.1)", "Install the driver; in a container start it with --gpus all.")
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return Finding("cuda", False, "a driver, but no device it can use", "Look at nvidia-smi.")
    return Finding("cuda", True, f"{count.value} device(s)")


def _tensorrt() -> Finding:
    if _version("tensorrt") is None:
        return Finding("tensorrt", False, "not installed (will run the trt-* engines)", "pip install 'clipq[tensorrt]'")
    if not _cuda().usable:
        return Finding("tensorrt", False, f"{_version('tensorrt')}, but no CUDA device", "Its runtime needs a driver and a device.")
    return _library("tensorrt", "tensorrt", "tensorrt", "")


CHECKS: tuple[Callable[[], Finding], ...] = (_torch, _open_clip, _onnxruntime, _report, _cuda, _tensorrt)
