"""The project's promises about itself: who imports whom, what loads when, what ships, what README says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from clipq.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "clipq").rglob("*.py"))
HEAVY = ("torch", "torchvision", "open_clip", "onnx", "onnxruntime", "pyarrow", "jinja2", "scipy", "tokenizers", "transformers")


def _loaded_by(code: str) -> set[str]:
    quietly = "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):"
    script = f"import contextlib, io, sys\n{quietly}\n    {code}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    return set(run.stdout.split())


def test_import_contracts_hold() -> None:
    """The layers of pyproject.toml are what the imports really are."""
    run = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert run.returncode == 0, run.stdout


def test_import_loads_nothing_heavy() -> None:
    """``import clipq`` brings no runtime."""
    assert not _loaded_by("import clipq, clipq.cli.main") & set(HEAVY)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    """Every help text comes without a runtime."""
    arguments = [command, "--help"] if command else ["--help"]
    loaded = _loaded_by(f"import clipq.cli.main as m; m.main({arguments!r})")
    assert "clipq.cli.main" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_tells_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command has a help text, and each of its options one of its own."""
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: clipq {command}" in text
    bare = re.findall(r"^  (-[^\s,]+(?:, --[\w-]+)?(?: [A-Z][\w\[\],|.]*)?)\s*$(?!\n\s{10,})", text, flags=re.MULTILINE)
    assert not bare, f"options without help: {bare}"


def test_root_links_show_the_rooms() -> None:
    """The four names users asked for stand at the root and lead into the package."""
    for name in ("export", "engines", "evaluate", "calib_data"):
        link = ROOT / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / "clipq" / name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_readable_in_one_sitting(path: Path) -> None:
    """A file says in its first line what it is, fits 300 lines, and each of its functions fits 60."""
    text = path.read_text()
    tree = ast.parse(text)
    assert (ast.get_docstring(tree) or "").strip(), "no docstring"
    assert len(text.splitlines()) <= 300
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_nothing_is_left_open() -> None:
    """No note to do later stands in the tree: an open question is an issue."""
    words = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "HA" + "CK", "XX" + "X")) + r")\b")
    assert not [path for path in SOURCES if words.search(path.read_text())]


def test_readme_commands_exist() -> None:
    """Every make target and clipq command that README names is there, with the options it names."""
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z][a-z-]*)", readme))
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
    commands = set(re.findall(r"^\s*clipq ([a-z]+)", readme, flags=re.MULTILINE))
    assert commands <= set(COMMANDS)


def test_readme_links_lead_somewhere() -> None:
    """Every relative link in README, docs and design leads to a file of the project."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "design").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_wheel_has_what_it_needs(tmp_path: Path) -> None:
    """The wheel carries the package with its data, and nothing else of the project."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("clipq-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"clipq"}
    for needed in (
        "clipq/py.typed",
        "clipq/evaluate/report/report.schema.json",
        "clipq/calib_data/facts/imagenet_classes.csv",
        "clipq/evaluate/robustness/published.csv",
        "clipq/engines/torch/demo/under/open_clip_model.safetensors",
    ):
        assert needed in names
    tracked = subprocess.run(["git", "ls-files", "clipq"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert not {name for name in names if name.startswith("clipq/")} - set(tracked), "files that git does not know"
