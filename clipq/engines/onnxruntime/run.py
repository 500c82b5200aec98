"""ONNX Runtime: one session per tower, its provider, names, types and model asserted before the first inference."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from clipq.artifact import Bundle, Manifest
from clipq.engines.base import Engine, Float32, Tower, TowerSpec
from clipq.engines.onnxruntime.options import session_options
from clipq.engines.onnxruntime.profile import read_profile
from clipq.engines.onnxruntime.providers import CPU, require_provider, session_providers
from clipq.engines.proof import TowerProof, read_work
from clipq.engines.towers import INPUT_NAMES, OUTPUT_NAME, PATCHES_NAME, tower_specs
from clipq.errors import EngineError, RefusedError
from clipq.recipe import Recipe

_DTYPES = {"tensor(float)": "float32", "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(float16)": "float16"}


class OrtEngine(Engine):
    """Both towers of a bundle on ONNX Runtime, fully optimised (ORT_ENABLE_ALL), operators one after another.

    A session is safe to run from several threads. With ``shares_cores`` its thread pool sleeps between operators instead of
    spinning: spinning lowers the latency of a lone engine and steals cores from decoding.

    Attributes:
        threads: Threads of one inference; None is ONNX Runtime's own choice, one per physical core.
    """

    def __init__(self, engine_id: str, towers: Mapping[Tower, TowerSpec], files: Mapping[Tower, Path], manifest: Manifest) -> None:
        super().__init__(engine_id, towers)
        self.threads: int | None = None
        self._files = dict(files)
        self._manifest = manifest
        self._sessions: dict[Tower, Any] = {}
        self._work: Mapping[str, Mapping[str, int]] = {}

    @classmethod
    def from_bundle(cls, bundle: Bundle, engine_id: str, threads: int | None = None) -> Self:
        """Return the engine with its provider and every one of its files checked; no session is made yet.

        Raises:
            MissingRuntimeError: onnxruntime, its provider, the device or a library that they need is not here.
            RefusedError: A file is not what the manifest says.
        """
        entry = bundle.engine(engine_id)
        require_provider(entry.provider)
        files: dict[Tower, Path] = {tower: _checked(bundle, entry.towers[tower]) for tower in INPUT_NAMES if tower in entry.towers}
        engine = cls(engine_id, tower_specs(bundle, patches=True), files, bundle.manifest)
        engine.threads = threads
        engine._work = read_work(bundle, engine_id)
        return engine

    def prove(self, tower: Tower) -> TowerProof:
        """Return what ONNX Runtime's profile of one sample shows, from a session of its own with the same options.

        Raises:
            EngineError: The profile cannot be read.
        """
        spec = self.towers[tower]
        sample = np.zeros((1, *spec.input_shape), spec.input_dtype)
        with tempfile.TemporaryDirectory(prefix="clipq-profile-") as folder:
            session = self._session(tower, spinning=False, profile=f"{folder}/profile")
            self._infer(session, tower, sample)
            text = Path(session.end_profiling()).read_text()
        return read_profile(text, self._work.get(tower, {}))

    def _open(self) -> None:
        for tower, path in self._files.items():
            session = self._session(tower, spinning=not self.shares_cores)
            self.provider = session.get_providers()[0]
            _check_model(session, self._manifest, path)
            _check_signature(session, INPUT_NAMES[tower], self.towers[tower], path)
            self._sessions[tower] = session
        self.towers = {tower: spec for tower, spec in self.towers.items() if tower in self._sessions}

    def _close(self) -> None:
        self._sessions.clear()

    def _run(self, tower: Tower, batch: npt.NDArray[Any]) -> Float32:
        return self._infer(self._sessions[tower], tower, batch)[0]

    def _run_patches(self, pixels: npt.NDArray[Any]) -> tuple[Float32, Float32]:
        embeddings, patches = self._infer(self._sessions["image"], "image", pixels, [OUTPUT_NAME, PATCHES_NAME])
        return embeddings, patches

    def _session(self, tower: Tower, *, spinning: bool, profile: str = "") -> Any:
        path, entry, spec = self._files[tower], self._manifest.engines[self.id], self.towers[tower]
        batches = self._manifest.recipe.get("batch", Recipe(model="").batch)
        providers = session_providers(entry.provider, (INPUT_NAMES[tower], batches, spec.input_shape))
        return _session(path, providers, self.threads, spinning=spinning, profile=profile)

    def _infer(self, session: Any, tower: Tower, batch: npt.NDArray[Any], names: Sequence[str] = (OUTPUT_NAME,)) -> list[Float32]:
        try:
            outputs: list[Float32] = session.run(list(names), {INPUT_NAMES[tower]: np.ascontiguousarray(batch)})
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            raise EngineError(f"{self.id} failed in its {tower} tower", found=_first_line(error), fix="Export it again.") from error
        return outputs


def _checked(bundle: Bundle, name: str) -> Path:
    """Return a tower's path after checking it and its external data, which lies beside it as ``<name>.data`` or ``<name>_data``."""
    path = bundle.file(name)
    for other in bundle.manifest.files:
        if other != name and other.startswith(name) and PurePosixPath(other).parent == PurePosixPath(name).parent:
            bundle.file(other)
    return path


def _session(path: Path, providers: Sequence[tuple[str, dict[str, str]]], threads: int | None, *, spinning: bool, profile: str) -> Any:
    ort = importlib.import_module("onnxruntime")
    options = session_options(threads or 0)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.enable_profiling, options.profile_file_prefix = bool(profile), profile
    try:
        session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise EngineError(f"ONNX Runtime cannot load {path}", found=_first_line(error), fix="Export this engine again.") from error
    session.disable_fallback()
    expected = list(dict.fromkeys([*(name for name, _ in providers), CPU]))
    if session.get_providers() != expected:
        raise EngineError(
            f"{path} fell back to another provider", found=session.get_providers(), expected=expected, fix="See clipq doctor."
        )
    return session


def _check_model(session: Any, manifest: Manifest, path: Path) -> None:
    facts = session.get_modelmeta().custom_metadata_map
    for key, expected in (("clipq.model", manifest.model.id), ("clipq.state_sha256", manifest.model.state_sha256)):
        if facts.get(key) != expected:
            raise RefusedError(f"{path} is an engine of another model", found=f"{key} {facts.get(key)!r}", expected=repr(expected))


def _check_signature(session: Any, input_name: str, spec: TowerSpec, path: Path) -> None:
    inputs = [_describe(value) for value in session.get_inputs()]
    outputs = [_describe(value) for value in session.get_outputs()]
    needed = [(input_name, spec.input_dtype, *spec.input_shape)]
    given: list[tuple[Any, ...]] = [(OUTPUT_NAME, "float32", spec.embed_dim)]
    if spec.patches:
        given.append((PATCHES_NAME, "float32", spec.patches, spec.embed_dim))
    if inputs != needed or not set(given) <= set(outputs):
        raise EngineError(
            f"{path} has other inputs or outputs than its manifest says",
            found=f"{inputs} -> {outputs}",
            expected=f"{needed} -> {given}",
            fix="Export this engine again.",
        )


def _describe(value: Any) -> tuple[Any, ...]:
    return (value.name, _DTYPES.get(value.type, value.type), *value.shape[1:])


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
