"""Where this machine's pip gets packages from, as arguments of buildah: the build then asks the same places, and no image names them."""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PLACES = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "cert",
    "proxy",
    "timeout",
    "default-timeout",
    "retries",
)
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
INSIDE = "/run/secrets/ca.pem"


def merged(listed: Iterable[str]) -> dict[str, str]:
    """Return what ``pip config list`` says of places: the environment stands before files, install's section before the common one."""
    ranks = {"global": 0, "install": 1, ":env:": 2}
    found: dict[str, tuple[int, str]] = {}
    for line in listed:
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if key in PLACES and section in ranks and ranks[section] >= found.get(key, (0, ""))[0]:
            found[key] = (ranks[section], str(ast.literal_eval(value)))
    return {key: value for key, (_, value) in found.items()}


def local_paths(places: Mapping[str, str]) -> Iterator[Path]:
    """Yield the folders of this machine that an index or a link names; of ``file:`` indexes the one above, where their files lie."""
    for key in ("index-url", "extra-index-url", "find-links"):
        for word in places.get(key, "").split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.exists():
                yield path.parent if word.startswith("file:") else path


def certificates(places: Mapping[str, str], environment: Mapping[str, str]) -> Path | None:
    """Return the file of trusted certificates that pip is told to use here, if any."""
    named = [places.get("cert", ""), *(environment.get(name, "") for name in BUNDLES)]
    return next((Path(name) for name in named if name and Path(name).is_file()), None)


def arguments(places: Mapping[str, str], environment: Mapping[str, str], folder: Path) -> list[str]:
    """Write ``pip.conf`` and ``ca.pem`` into ``folder`` and return the options of ``buildah bud`` that hand them to the build."""
    options = []
    trusted = certificates(places, environment)
    if trusted:
        shutil.copyfile(trusted, folder / "ca.pem")
        options += ["--secret", f"id=ca.pem,src={folder / 'ca.pem'}"]
    config = configparser.RawConfigParser()
    config["global"] = {**places, **({"cert": INSIDE} if trusted else {})}
    with (folder / "pip.conf").open("w", encoding="utf-8") as file:
        config.write(file)
    options += ["--secret", f"id=pip.conf,src={folder / 'pip.conf'}"]
    return options + [part for path in dict.fromkeys(local_paths(places)) for part in ("--volume", f"{path}:{path}:ro")]


if __name__ == "__main__":
    listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    print("\n".join(arguments(merged(listing.stdout.splitlines()), os.environ, Path(sys.argv[1]))))
