"""What an image's configuration and own layers must be: checked on the files that ``buildah push`` wrote."""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

OWN_BYTES = 250_000_000
LABELS = ("title", "description", "licenses", "version", "revision")
COMPILERS = {"as", "c++", "c89", "c99", "cc", "clang", "g++", "gcc", "go", "ld", "nvcc", "rustc", "tcc"}
PACKAGES = {"nvidia", "open_clip", "pip", "setuptools", "torch", "torchvision"}
PLACES = ("opt/clipq", "scratch")


def config_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the user, command, environment, volume, stop signal, health check and labels of an image."""
    user = str(config.get("User", ""))
    if not user.partition(":")[0].isdigit() or user.partition(":")[0] == "0":
        yield f"user is {user!r}, not a number above 0"
    if config.get("Entrypoint") != ["clipq"]:
        yield f"entry point is {config.get('Entrypoint')}"
    environment = dict(entry.split("=", 1) for entry in config.get("Env", ()))
    for name, value in {"PYTHONSAFEPATH": "1", "HOME": "/scratch", "TMPDIR": "/scratch"}.items():
        if environment.get(name) != value:
            yield f"{name} is {environment.get(name)!r}, not {value!r}"
    if list(config.get("Volumes") or ()) != ["/scratch"]:
        yield f"volumes are {config.get('Volumes')}"
    if config.get("StopSignal") != "SIGINT":
        yield f"stop signal is {config.get('StopSignal')}, which process 1 does not hear"
    if "clipq doctor" not in " ".join((config.get("Healthcheck") or {}).get("Test", ())):
        yield f"health check is {config.get('Healthcheck')}"
    labels = config.get("Labels") or {}
    for name in LABELS:
        if not labels.get(f"org.opencontainers.image.{name}"):
            yield f"label {name} is missing"


def file_faults(names: Iterable[str]) -> Iterator[str]:
    """Yield the files that an image must not have: of torch, compilers, pip and its settings, and own files outside two folders."""
    for name in names:
        path = PurePosixPath("/", name).relative_to("/")
        if str(path) != "." and not any(path.is_relative_to(place) or PurePosixPath(place).is_relative_to(path) for place in PLACES):
            yield f"own file outside {' and '.join(PLACES)}: {path}"
        package = path.name if path.parent.name == "site-packages" else ""
        if package in PACKAGES or path.name in COMPILERS | {"pip.conf", "ca.pem"}:
            yield f"does not belong into the image: {path}"


def own_layers(folder: Path, base: Path) -> list[Path]:
    """Return the layers of an image that its base does not have, uncompressed, from what ``buildah push -D dir:`` wrote of both."""
    mine, below = ([layer["digest"] for layer in json.loads((where / "manifest.json").read_text())["layers"]] for where in (folder, base))
    if mine[: len(below)] != below:
        raise SystemExit(f"{folder} does not stand on {base}")
    return [folder / digest.removeprefix("sha256:") for digest in mine[len(below) :]]


def main(folder: Path, base: Path) -> int:
    """Print the size and every fault; return 1 when there is one."""
    manifest = json.loads((folder / "manifest.json").read_text())
    config = json.loads((folder / manifest["config"]["digest"].removeprefix("sha256:")).read_text())["config"]
    layers = own_layers(folder, base)
    faults = list(config_faults(config))
    for layer in layers:
        with tarfile.open(layer) as members:
            faults += file_faults(members.getnames())
    size = sum(layer.stat().st_size for layer in layers)
    if size > OWN_BYTES:
        faults.append(f"own layers have {size / 1e6:.1f} MB, above {OWN_BYTES / 1e6:.0f} MB")
    print(f"own layers: {len(layers)} of {size / 1e6:.1f} MB uncompressed (at most {OWN_BYTES / 1e6:.0f} MB)")
    for fault in faults[:20]:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
