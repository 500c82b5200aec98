"""The Dockerfile without building it: stages, what gets in, and the rules of a clean image (``make image-check`` builds and runs it)."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from clipq import __version__
from clipq.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("cpu", "gpu", "jetson")
OUTSIDE = (
    ".ci/run",
    ".git/HEAD",
    ".venv/bin/python",
    "Dockerfile",
    "benchmarks/startup.py",
    "clipq/__pycache__/artifact.cpython-311.pyc",
    "out/demo/report.html",
    "pip.conf",
    "shared/data",
    "tests/conftest.py",
)
USED = {"ARG", "FROM", "WORKDIR", "RUN", "COPY", "LABEL", "ENV", "USER", "VOLUME", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
Step = tuple[str, str]


def _steps(text: str) -> list[Step]:
    """Return (instruction, arguments), comments left out and continued lines joined, as Docker reads them."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [(line.split(None, 1)[0], re.sub(r"\s+", " ", line.split(None, 1)[1].strip())) for line in joined.splitlines()]


def _stages(steps: list[Step]) -> dict[str, list[Step]]:
    """Return the steps of each named stage, the ``FROM`` first; what stands before all stages is under the empty name."""
    stages: dict[str, list[Step]] = {"": []}
    for name, arguments in steps:
        if name == "FROM":
            stages[arguments.split(" AS ")[1]] = []
        stages[list(stages)[-1]].append((name, arguments))
    return stages


STEPS = _steps((ROOT / "Dockerfile").read_text())
STAGES = _stages(STEPS)


def _only(stage: str, instruction: str) -> list[str]:
    return [arguments for name, arguments in STAGES[stage] if name == instruction]


def _origins(stage: str) -> list[str]:
    """Return the stages that a stage stands on, itself first, down to the base image."""
    base = STAGES[stage][0][1].split(" AS ")[0]
    return [stage, *(_origins(base) if base in STAGES else [base])]


def _ignored(path: str) -> bool:
    """Tell whether .dockerignore keeps a path out: the last pattern that fits it or a folder above it decides."""
    out = False
    parts = Path(path).parts
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        tails = (
            ["/".join(Path(one).parts[i:]) for one in above for i in range(len(Path(one).parts))] if pattern.startswith("**/") else above
        )
        if any(fnmatch(one, pattern.removeprefix("**/")) for one in tails):
            out = not line.startswith("!")
    return out


def test_steps_and_stages_are_read_as_docker_does() -> None:
    """A comment inside a continued line is none of it, and a stage ends where the next begins."""
    steps = _steps("ARG A=1\nFROM x AS one\n# a\nRUN a \\\n# b\n  && b\nFROM one AS two\nUSER 1\n")
    assert steps == [("ARG", "A=1"), ("FROM", "x AS one"), ("RUN", "a && b"), ("FROM", "one AS two"), ("USER", "1")]
    assert list(_stages(steps)) == ["", "one", "two"]
    assert _stages(steps)["two"] == [("FROM", "one AS two"), ("USER", "1")]


@pytest.mark.parametrize("target", TARGETS)
def test_target_stands_on_a_base_that_a_site_can_give(target: str) -> None:
    """Each target's base is an argument with a tagged default that names no registry."""
    base = _origins(target)[-1]
    assert base == f"${{BASE_{target.upper()}}}"
    (default,) = [value.split("=")[1] for value in _only("", "ARG") if value.startswith(base[2:-1] + "=")]
    name, tag = default.split(":")
    assert tag != "latest"
    assert "." not in name.split("/")[0]


def test_targets_differ_only_in_what_they_stand_on() -> None:
    """User, environment, volume, labels, health check and command are the same words in all three."""
    assert set(TARGETS) < set(STAGES)
    alike = {target: [(name, words.replace(f"{target}-build", "build")) for name, words in STAGES[target][1:]] for target in TARGETS}
    assert alike["cpu"] == alike["gpu"] == alike["jetson"]


def test_nothing_is_run_in_a_final_stage() -> None:
    """A final stage only copies: what built it, a compiler too, stays behind; it ends as a user that is not root."""
    for target in TARGETS:
        assert not _only(target, "RUN")
        (user,) = _only(target, "USER")
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
        assert all(f"--from={target}-build" in copied for copied in _only(target, "COPY"))
        assert f"--from={target}-build --chown={user} /scratch /scratch" in _only(target, "COPY")


def test_commands_exist() -> None:
    """The entry point is a script of the package; the health check is doctor, whose other codes become the 1 that Docker knows."""
    scripts = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[1].split("[")[0]
    (entry,) = json.loads(_only("cpu", "ENTRYPOINT")[0])
    assert re.search(rf"^{entry} = ", scripts, flags=re.MULTILINE)
    shell, flag, command = json.loads(_only("cpu", "HEALTHCHECK")[0].split(" CMD ")[1])
    assert (shell, flag, command) == ("sh", "-c", "clipq doctor || exit 1")
    assert "doctor" in COMMANDS


def test_environment_lets_the_root_be_read_only() -> None:
    """Home and temporary files lie on the declared volume, where the command starts; Python writes nothing beside its modules."""
    environment = dict(pair.split("=", 1) for pair in _only("cpu", "ENV")[0].split())
    (volume,) = json.loads(_only("cpu", "VOLUME")[0])
    assert {environment["HOME"], environment["TMPDIR"], _only("cpu", "WORKDIR")[0]} == {volume}
    assert environment["PYTHONSAFEPATH"] == environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_labels_tell_this_version() -> None:
    """The label's default version is the package's."""
    assert f"VERSION={__version__}" in _only("cpu", "ARG")
    names = re.findall(r"org\.opencontainers\.image\.(\w+)=", _only("cpu", "LABEL")[0])
    assert names == ["title", "description", "licenses", "version", "revision"]


@pytest.mark.parametrize("words", [words for name, words in STEPS if name == "COPY" and "--from" not in words])
def test_copied_files_exist_and_are_not_ignored(words: str) -> None:
    """Every source of a COPY is in the tree, and .dockerignore lets it through."""
    *sources, _ = words.split()
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not _ignored(source), source


@pytest.mark.parametrize("path", OUTSIDE)
def test_ignored_files_stay_out(path: str) -> None:
    """History, environments, results, tests, caches and a site's settings never reach the build."""
    assert _ignored(path)
    assert not _ignored("clipq/cli/doctor.py")


def test_copies_come_from_earlier_stages() -> None:
    """``--from`` names a stage that stands above."""
    names = list(STAGES)
    for stage, steps in STAGES.items():
        for origin in re.findall(r"--from=(\S+)", " ".join(words for name, words in steps if name == "COPY")):
            assert names.index(origin) < names.index(stage)


@pytest.mark.parametrize("words", [words for name, words in STEPS if name == "RUN"])
def test_run_follows_the_rules(words: str) -> None:
    """Package lists do not stay, nothing is cached or unpinned, no download but by a package manager, no failure inside a pipe."""
    assert not re.search(r"\b(sudo|curl|wget|chmod 777|--trusted-host)\b", words)
    assert "|" not in words.replace("||", "")
    if "apt-get install" in words:
        assert re.search(r"apt-get update && apt-get install --yes --no-install-recommends .* && rm -rf /var/lib/apt/lists/\*", words)
    if "pip install" in words:
        assert "--no-cache-dir" in words
        assert re.search(r"--constraint /?constraints\.txt", words)
        assert "--mount=type=secret,id=pip.conf,target=/etc/pip.conf" in words


def test_no_site_and_no_odd_instruction_is_named() -> None:
    """No address stands in the file, ADD and MAINTAINER are not used, and no argument or variable holds a secret."""
    assert "://" not in (ROOT / "Dockerfile").read_text()
    assert {name for name, _ in STEPS} <= USED
    for name, words in STEPS:
        assert name not in {"ARG", "ENV"} or not re.search(r"password|secret|token|index", words, flags=re.IGNORECASE)


def _named(words: str) -> set[str]:
    """Return the packages that a ``pip install`` names without a version; not the wheel, whose own needs are the project's."""
    asked = re.split(r" (?:&&|\|\|) ", words.split("pip install ")[1])[0]
    bare = re.sub(r"--constraint \S+|\"\$\(.*?\)\[.*?\]\"", "", asked)
    return {word.strip('"').lower() for word in bare.split() if "==" not in word and not word.startswith("-")}


def test_all_that_pip_installs_is_pinned() -> None:
    """What a target asks pip for by name has one version, in constraints.txt or beside the name."""
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    project = (ROOT / "pyproject.toml").read_text()
    wanted = set(re.findall(r'^(?:cpu|gpu) = \["([\w-]+)', project, flags=re.MULTILINE)) | {"jinja2", "pyarrow"}
    wanted |= set(re.findall(r'^  "([\w-]+)>', project.split("dependencies = [")[1].split("]\n")[0], flags=re.MULTILINE))
    for words in (words for name, words in STEPS if name == "RUN" and "pip install" in words):
        wanted |= _named(words)
    assert {"onnxruntime", "onnxruntime-gpu", "cuda-python", "numpy", "pyyaml"} <= wanted
    assert wanted <= pinned, wanted - pinned


def test_pages_show_commands_that_work() -> None:
    """docs/image.md names every target, base and make target, and README leads there."""
    page = (ROOT / "docs" / "image.md").read_text()
    for target in TARGETS:
        assert f"--target {target}" in page
        assert f"BASE_{target.upper()}" in page
    for command in re.findall(r"(?:clipq:\w+|\$IMAGE) ([a-z]+) /bundle", page):
        assert command in COMMANDS
    assert "make image-check" in page
    assert re.search(r"^image-check:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    assert "docs/image.md" in readme
    assert [line for line in readme.splitlines() if line.startswith("docker run") and line in page]
