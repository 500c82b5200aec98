"""Plans on a real device, with either binding: the embeddings are those of ONNX Runtime, with and without CUDA graphs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundle import CONTEXT, SIZE, words
from toy_plans import ENGINES, make_planned_bundle

from clipq.artifact import Bundle
from clipq.engines.table import open_engine
from clipq.engines.tensorrt import cuda
from clipq.engines.tensorrt.run import TensorrtEngine
from clipq.errors import EngineError

pytestmark = pytest.mark.gpu
RNG = np.random.default_rng(0)
PIXELS = RNG.standard_normal((8, 3, SIZE, SIZE), dtype=np.float32)
TOKENS = RNG.integers(0, len(words()), (8, CONTEXT), dtype=np.int32)


@pytest.fixture(scope="module", params=list(ENGINES))
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, str]:
    """Return a bundle with plans of each runtime that is installed."""
    folder: Path = tmp_path_factory.mktemp(request.param) / "bundle"
    return make_planned_bundle(folder, request.param), ENGINES[request.param]


@pytest.fixture(params=list(cuda.BINDINGS))
def binding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let only one binding be there."""
    name: str = request.param
    if not cuda.installed(name):
        pytest.skip(f"{name} is not installed")
    monkeypatch.setattr(cuda, "installed", lambda library: library == name)
    return name


def _expected(bundle: Bundle) -> tuple[Any, Any]:
    with open_engine(bundle, "ort-fp32") as engine:
        return engine.run("image", PIXELS), engine.run("text", TOKENS)


def test_embeddings_are_those_of_onnxruntime(planned: tuple[Bundle, str], binding: str) -> None:
    """Both towers, batches growing and shrinking within the profile; outside it the line names the profile."""
    bundle, engine_id = planned
    image, text = _expected(bundle)
    with open_engine(bundle, engine_id) as engine:
        for n in (4, 8, 2, 8):
            np.testing.assert_allclose(engine.run("image", PIXELS[:n]), image[:n], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(engine.run("text", TOKENS), text, rtol=1e-4, atol=1e-4)
        with pytest.raises(EngineError, match="expected 2 to 8"):
            engine.run("image", PIXELS[:1])


def test_graph_gives_the_same_embeddings(planned: tuple[Bundle, str], binding: str) -> None:
    """A replayed graph computes on the pixels that are there now; pycuda says that it has no graphs."""
    bundle, engine_id = planned
    image, _ = _expected(bundle)
    with open_engine(bundle, engine_id, uses_graphs=True) as engine:
        if binding == "pycuda":
            with pytest.raises(EngineError, match="cannot record CUDA graphs"):
                engine.run("image", PIXELS)
            return
        for start, n in ((0, 4), (4, 4), (0, 8), (2, 4)):
            np.testing.assert_allclose(engine.run("image", PIXELS[start : start + n]), image[start : start + n], rtol=1e-4, atol=1e-4)


def test_events_time_the_device(planned: tuple[Bundle, str], binding: str) -> None:
    """Every call has a time, and the batch is still computed right after."""
    bundle, engine_id = planned
    with open_engine(bundle, engine_id) as engine:
        assert isinstance(engine, TensorrtEngine)
        seconds = engine.device_seconds("image", PIXELS, 20)
        np.testing.assert_allclose(engine.run("image", PIXELS), _expected(bundle)[0], rtol=1e-4, atol=1e-4)
        assert engine.prove("image").layers
    assert len(seconds) == 20
    assert all(0 < value < 1 for value in seconds)


def test_allocation_that_cannot_fit_is_told(binding: str) -> None:
    """More than any device has is an error of its own, and the stream still works after it."""
    bound = cuda.open_cuda(spinning=False)
    with pytest.raises(cuda.OutOfDeviceMemoryError):
        bound.allocate(1 << 50, host=False)
    buffer = bound.allocate(1 << 20, host=True)
    buffer.host[:] = 7
    bound.copy(buffer, 1 << 20, "to device")
    bound.wait()
    buffer.host[:] = 0
    bound.copy(buffer, 1 << 20, "to host")
    bound.wait()
    assert (buffer.host == 7).all()
    buffer.free()
    bound.close()


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
def test_provider_of_onnxruntime_can_be_required(provider: str) -> None:
    """Where the GPU build is installed with what it links, requiring its providers says nothing."""
    if provider not in importlib.import_module("onnxruntime").get_available_providers():
        pytest.skip("this build of ONNX Runtime has no GPU")
    importlib.import_module("clipq.engines.onnxruntime.providers").require_provider(provider)
