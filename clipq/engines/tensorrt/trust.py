"""Whether a plan may be loaded and can run here, decided before TensorRT sees it: a plan is code, and a wrong one may end the process.

Two kinds of "no". A file that is no whole plan, or not the one the manifest names, is refused (exit code 5). A sound plan for another
library version or another GPU is not at fault: what it needs is missing here (exit code 4), so ``clipq eval`` leaves its engine out.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipq.artifact import Bundle
from clipq.engines.tensorrt.adapter import TITLES
from clipq.engines.tensorrt.device import DeviceFacts
from clipq.errors import MissingRuntimeError, RefusedError
from clipq.files import sha256_bytes, sha256_file
from clipq.progress import note

# The head of a plan, from TensorRT 8.6 on: tag (4 bytes), serialization version (4, zero), 8 more, size of the file (8), library version
# (4 numbers of one byte). Tag and version as trtexec --getPlanVersionOnly reads them; the size as TensorRT-RTX 1.7 writes and checks it.
_TAGS = {"tensorrt": b"ftrt", "tensorrt-rtx": b"vtrt"}
_HEAD_BYTES = 28


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """What ``engine.json`` says of a plan, as far as loading it depends on it.

    Attributes:
        version: Of the library that built it.
        device: Name of the GPU that TensorRT built it on and for; empty for TensorRT-RTX, which builds for many.
        capabilities: Compute capabilities it was built for, e.g. ``8.7``; empty where every one from 8.0 on will do.
        compatibility: ``version`` and ``hardware``, as it was built with.
    """

    version: str
    device: str
    capabilities: tuple[str, ...]
    compatibility: tuple[str, ...]

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], path: Path) -> PlanFacts:
        """Read the entry of ``plans`` in ``engine.json`` at ``path``.

        Raises:
            RefusedError: A key is missing.
        """
        try:
            version, compatibility = str(facts["version"]), tuple(facts["compatibility"])
            if facts["runtime"] == "tensorrt-rtx":
                return cls(version, "", tuple(map(str, facts["compute_capabilities"])), compatibility)
            device = facts["device"]
            return cls(version, str(device["name"]), () if "hardware" in compatibility else (str(device["sm"]),), compatibility)
        except (KeyError, TypeError, AttributeError) as error:
            raise RefusedError(f"{path} does not describe its plans", found=error, fix="Export the bundle again.") from error


@dataclass(frozen=True, slots=True)
class CheckedPlan:
    """A plan that may be loaded, as long as its bytes have this hash: a file that is hashed, then read again, may be another one.

    Attributes:
        path: Where it is.
        sha256: The manifest's, or of the file that was found where plans are trusted.
    """

    path: Path
    sha256: str

    def read(self) -> bytes:
        """Return its bytes.

        Raises:
            RefusedError: They changed since they were checked.
        """
        data = self.path.read_bytes()
        if sha256_bytes(data) != self.sha256:
            raise RefusedError(
                f"{self.path} changed after it was checked", fix="See who writes into the bundle, and run the command again."
            )
        return data


def read_plan_facts(bundle: Bundle, engine_id: str) -> dict[str, Mapping[str, Any]]:
    """Return tower -> what ``engine.json`` says of its plan.

    Raises:
        RefusedError: It is not the file that the manifest names, or does not tell.
    """
    path = bundle.file(f"engines/{engine_id}/engine.json")
    try:
        return {tower: dict(facts) for tower, facts in json.loads(path.read_text()).get("plans", {}).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RefusedError(f"{path} does not describe its plans", found=error, fix="Export the bundle again.") from error


def rebuild_command(bundle: Bundle, engine_id: str) -> str:
    """Return the command that builds an engine's plans for this device from the bundle's own graphs."""
    return f"clipq-export --rebuild {bundle.folder} -o NEW --engines {engine_id}"


def check_plan(bundle: Bundle, engine_id: str, name: str, facts: Mapping[str, Any], here: tuple[str, DeviceFacts]) -> CheckedPlan:
    """Return a plan that may be loaded and can run here.

    The hash is checked by ``Bundle.file``. The driver is not compared: any driver that serves the library's CUDA runs the plan.

    Args:
        bundle: Where it is.
        engine_id: Of which engine.
        name: Its name in the manifest.
        facts: Its entry in ``engine.json``.
        here: Version of the loaded library, and the device.

    Raises:
        RefusedError: Its hash is not the manifest's (and plans are not trusted), or the file is no whole plan of this runtime.
        MissingRuntimeError: It was built for another version or another GPU.
    """
    runtime, fix = bundle.engine(engine_id).runtime, f"Run: {rebuild_command(bundle, engine_id)}"
    path = bundle.file(name)
    version = read_plan_version(path, runtime, fix)
    described = PlanFacts.from_json(facts, bundle.folder / "engines" / engine_id / "engine.json")
    named = bundle.manifest.files[name].sha256
    digest = sha256_file(path) if bundle.trust_plans else named
    if digest != named:
        _say_once(f"{path} is not the plan that the manifest names; it is loaded because of --trust-engine")
        described = replace(described, version=version or described.version)  # of the file that is here
    else:
        _check_device(path, described, here[1], fix)
    _check_version(path, runtime, described, here[0], fix)
    return CheckedPlan(path, digest)


def read_plan_version(path: Path, runtime: str, fix: str) -> str:
    """Return the library version that a plan's head names, e.g. ``10.3.0.30``; empty where its layout is unknown.

    Raises:
        RefusedError: The file is no plan of this runtime, or is cut short.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    tag = _TAGS[runtime]
    if head[:4] != tag or len(head) < _HEAD_BYTES:
        raise RefusedError(f"{path} is no {TITLES[runtime]} plan", found=f"{head[:4]!r}", expected=f"{tag!r} and a whole head", fix=fix)
    size = int.from_bytes(head[16:24], "little")
    if runtime == "tensorrt-rtx" and size != path.stat().st_size:
        raise RefusedError(f"{path} is not whole", found=f"{path.stat().st_size} bytes", expected=f"{size}, as its head says", fix=fix)
    return ".".join(map(str, head[24:28])) if head[4:8] == bytes(4) else ""


def _check_version(path: Path, runtime: str, plan: PlanFacts, here: str, fix: str) -> None:
    """Check that this library reads the plan: the very same version, because a version-compatible plan needs its lean runtime in others."""
    built, loaded = _numbers(plan.version), _numbers(here)
    shared = min(len(built), len(loaded))  # 8.6 tells three numbers of its four
    if built[:shared] != loaded[:shared]:
        title = TITLES[runtime]
        lean = ", or NVIDIA's lean runtime of it, which is not loaded here" if "version" in plan.compatibility else ""
        raise MissingRuntimeError(
            f"{path} needs the {title} that built it", found=f"{title} {here}", expected=f"{title} {plan.version}{lean}", fix=fix
        )


def _check_device(path: Path, plan: PlanFacts, here: DeviceFacts, fix: str) -> None:
    """Check that this GPU runs the plan: of a compute capability that it was built for, or 8.0 and later where it was built for all."""
    fits = here.sm in plan.capabilities if plan.capabilities else _numbers(here.sm) >= (8, 0)
    if not fits:
        built = ", ".join(plan.capabilities) or "8.0 or later"
        raise MissingRuntimeError(
            f"{path} needs another GPU",
            found=f"{here.name}, compute capability {here.sm}",
            expected=f"compute capability {built}" + (f", as {plan.device}" if plan.device else ""),
            fix=fix,
        )
    if plan.device and plan.device != here.name:
        _say_once(f"{path} was built on {plan.device} and runs on {here.name}: its kernels were not chosen for this GPU. {fix}")


@functools.cache
def _say_once(text: str) -> None:
    """Print a line the first time only: an engine is checked whenever it is made, to choose, to run and to measure it."""
    note(text)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
