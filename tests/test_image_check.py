"""The parts of ``make image-check`` that decide: a site's pip settings, and what an image must be."""

from __future__ import annotations

import importlib.util
import json
import tarfile
from configparser import RawConfigParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "image" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE, JUDGE = _load("site_pip"), _load("judge")
CONFIG: dict[str, Any] = {
    "User": "10001:10001",
    "Entrypoint": ["clipq"],
    "Env": ["PATH=/opt/clipq/bin", "PYTHONSAFEPATH=1", "HOME=/scratch", "TMPDIR=/scratch"],
    "Volumes": {"/scratch": {}},
    "StopSignal": "SIGINT",
    "Healthcheck": {"Test": ["CMD", "sh", "-c", "clipq doctor || exit 1"]},
    "Labels": {f"org.opencontainers.image.{name}": "x" for name in JUDGE.LABELS},
}


def test_the_environment_stands_before_files() -> None:
    """A command's section overrides the common one, the environment both; what is no place of packages is left out."""
    listed = [
        "global.index-url='https://files.example/simple'",
        "install.index-url='https://install.example/simple'",
        ":env:.index-url='https://environment.example/simple'",
        "global.find-links='/a /b'",
        ":env:.target='/elsewhere'",
        "global.break-system-packages='true'",
        "download.index-url='https://download.example/simple'",
    ]
    want = {"index-url": "https://environment.example/simple", "find-links": "/a /b"}
    assert SITE.merged(listed) == SITE.merged(listed[::-1]) == want
    assert SITE.merged(listed[:2])["index-url"] == "https://install.example/simple"
    assert SITE.merged([]) == {}


def test_local_folders_are_mounted_and_certificates_handed_over(tmp_path: Path) -> None:
    """A folder of wheels, a local index with its files and a bundle of certificates are in the build where pip.conf says."""
    for name in ("wheels", "index/simple", "work"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ca.crt").write_text("trusted")
    links = f"{tmp_path}/wheels https://files.example/links /not/here"
    places = {"find-links": links, "extra-index-url": f"file://{tmp_path}/index/simple", "cert": f"{tmp_path}/ca.crt"}
    options = SITE.arguments(places, {"SSL_CERT_FILE": "/not/here"}, tmp_path / "work")
    assert options[:4] == ["--secret", f"id=ca.pem,src={tmp_path}/work/ca.pem", "--secret", f"id=pip.conf,src={tmp_path}/work/pip.conf"]
    assert options[4:] == [word for path in ("index", "wheels") for word in ("--volume", f"{tmp_path}/{path}:{tmp_path}/{path}:ro")]
    config = RawConfigParser()
    config.read(tmp_path / "work" / "pip.conf")
    assert dict(config["global"]) == {**places, "cert": SITE.INSIDE}
    assert (tmp_path / "work" / "ca.pem").read_text() == "trusted"


def test_a_site_without_settings_gets_an_empty_file(tmp_path: Path) -> None:
    """Plain pip stays plain."""
    assert SITE.arguments({}, {}, tmp_path) == ["--secret", f"id=pip.conf,src={tmp_path / 'pip.conf'}"]
    assert (tmp_path / "pip.conf").read_text().strip() == "[global]"


def test_a_good_configuration_has_no_fault() -> None:
    """The configuration that the Dockerfile makes passes."""
    assert list(JUDGE.config_faults(CONFIG)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"User": ""}, "user"),
        ({"User": "0:0"}, "user"),
        ({"User": "clipq"}, "user"),
        ({"Entrypoint": ["/bin/sh"]}, "entry point"),
        ({"Env": [entry for entry in CONFIG["Env"] if not entry.startswith("PYTHONSAFEPATH")]}, "PYTHONSAFEPATH"),
        ({"Env": [*CONFIG["Env"], "HOME=/root"]}, "HOME"),
        ({"Volumes": None}, "volumes"),
        ({"StopSignal": None}, "stop signal"),
        ({"Healthcheck": None}, "health check"),
        ({"Labels": {}}, "label title"),
    ],
)
def test_each_fault_of_a_configuration_is_found(change: dict[str, Any], said: str) -> None:
    """One thing wrong is one thing said."""
    faults = list(JUDGE.config_faults({**CONFIG, **change}))
    assert faults
    assert faults[0].startswith(said)


@pytest.mark.parametrize(
    "name",
    [
        "opt/clipq/lib/python3.11/site-packages/torch",
        "opt/clipq/lib/python3.11/site-packages/pip",
        "opt/clipq/bin/gcc",
        "scratch/pip.conf",
        "usr/bin/new",
        "opt/pypi",
    ],
)
def test_each_file_that_does_not_belong_is_found(name: str) -> None:
    """Torch, pip, compilers, settings and files of a site are found by their place."""
    good = ["opt", "opt/clipq", "./opt/clipq/bin/clipq", "opt/clipq/lib/python3.11/site-packages/clipq/engines/torch", "scratch/", "."]
    assert list(JUDGE.file_faults(good)) == []
    assert list(JUDGE.file_faults([*good, name]))


def _image(folder: Path, layers: list[str], config: dict[str, Any]) -> Path:
    """Write an image as ``buildah push`` does; a layer is named after its one file."""
    folder.mkdir()
    for layer in layers:
        (folder / "content").write_bytes(b"x" * 5000)
        with tarfile.open(folder / layer.replace("/", "-"), "w") as file:
            file.add(folder / "content", layer)
    (folder / "config").write_text(json.dumps({"config": config}))
    entries = [{"digest": "sha256:" + layer.replace("/", "-")} for layer in layers]
    (folder / "manifest.json").write_text(json.dumps({"config": {"digest": "sha256:config"}, "layers": entries}))
    return folder


def test_own_layers_are_weighed_without_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what stands on the base counts; one byte too many fails, and so does another base."""
    base = _image(tmp_path / "base", ["usr/bin/python3"], {})
    mine = _image(tmp_path / "mine", ["usr/bin/python3", "opt/clipq/a"], CONFIG)
    assert JUDGE.main(mine, base) == 0
    size = (mine / "opt-clipq-a").stat().st_size
    assert capsys.readouterr().out.startswith(f"own layers: 1 of {size / 1e6:.1f} MB")
    monkeypatch.setattr(JUDGE, "OWN_BYTES", size)
    assert JUDGE.main(mine, base) == 0
    monkeypatch.setattr(JUDGE, "OWN_BYTES", size - 1)
    assert JUDGE.main(mine, base) == 1
    assert "own layers have" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="does not stand on"):
        JUDGE.main(mine, _image(tmp_path / "other", ["etc/other"], {}))
