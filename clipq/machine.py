"""What this machine is and which versions run on it: every record that carries a figure carries this."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from clipq import __version__

DISTRIBUTIONS = (
    "clipq",
    "numpy",
    "scipy",
    "pillow",
    "tokenizers",
    "torch",
    "torchvision",
    "open_clip_torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt_rtx_cu13_libs",
    "cuda-python",
    "pycuda",
)


def describe_machine() -> dict[str, Any]:
    """Return processor, usable cores, memory in bytes, system and Python version."""
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def usable_cores() -> int:
    """Return how many processors this process may use (a container's limit on the set of processors counts)."""
    return len(os.sched_getaffinity(0))


def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that decide a figure; nothing is imported for it."""
    installed: dict[str, str] = {}
    for distribution in metadata.distributions():
        installed.setdefault((distribution.name or "").lower().replace("_", "-"), distribution.version)  # the first is what is imported
    return {name: installed[key] for name in DISTRIBUTIONS if (key := name.replace("_", "-")) in installed}


def describe_code() -> dict[str, Any]:
    """Return clipq's version and, where it runs from a git checkout, its commit and whether the package differs from it."""
    root = Path(__file__).resolve().parents[1]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return {"clipq": __version__}
    commands = [[git, "-C", str(root), "rev-parse", "HEAD"], [git, "-C", str(root), "status", "--porcelain", "--", "clipq"]]
    commit, changes = (subprocess.run(command, capture_output=True, text=True, check=False) for command in commands)  # noqa: S603 - our own words
    if commit.returncode or changes.returncode:
        return {"clipq": __version__}
    return {"clipq": __version__, "commit": commit.stdout.strip(), "dirty": bool(changes.stdout.strip())}


def record(benchmark: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a measurement: what was measured, when, by which command, on what, with which versions."""
    command = shlex.join(["python", *(Path(word).name if word.endswith(".py") else word for word in sys.argv)])
    head = {"benchmark": benchmark, "created": now(), "command": command, "machine": describe_machine(), "versions": library_versions()}
    return {**head, **figures}


def now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()
