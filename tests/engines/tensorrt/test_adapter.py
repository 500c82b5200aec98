"""The branches between TensorRT's versions, on stand-ins that have the names of one version and no others."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from tensorrt_names import Recorder, stand_in

from clipq.engines.tensorrt import adapter
from clipq.engines.tensorrt.adapter import Api, check_sm
from clipq.engines.tensorrt.log import Log, as_text, last_failure, make_logger, one_line
from clipq.engines.tensorrt.progress import Percent, interrupts, make_monitor
from clipq.errors import MissingRuntimeError, UsageError

VERSIONS = ("8.6", "10.16", "11.4", "rtx-1.7")
load_api = adapter.load_api.__wrapped__  # without its memory: no stand-in outlives its test


def api_of(version: str, **more: Any) -> Api:
    """Return the adapter of a stand-in."""
    library, log = stand_in(version, **more), Log()
    return Api("tensorrt-rtx" if version.startswith("rtx") else "tensorrt", library, log, make_logger(library, log))


@pytest.mark.parametrize("version", VERSIONS)
def test_network_is_strongly_typed_where_that_exists(version: str) -> None:
    """8.6 gets the explicit batch flag, every other version strong typing, and none both."""
    api = api_of(version)
    builder = Recorder(version, "Builder", create_network=lambda flags: flags)
    flags = api.library.NetworkDefinitionCreationFlag
    wanted = flags.EXPLICIT_BATCH if version == "8.6" else flags.STRONGLY_TYPED
    assert api.create_network(builder) == 1 << int(wanted)
    assert api.strongly_typed is (version != "8.6")
    assert api.has_progress is (version != "8.6")
    assert api.has_timing_cache is api.needs_device is (not version.startswith("rtx"))


def _layer(kind: str, dtype: Any) -> Recorder:
    result = SimpleNamespace(dtype=dtype) if dtype is not None else None
    return Recorder("8.6", "ILayer", type=SimpleNamespace(name=kind), num_outputs=1, get_output=lambda _index: result)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_types_of_8_6_come_from_flags_and_layers(precision: str) -> None:
    """Softmax, means and maxima are held in FP32, where LayerNorm is anyway; the rest of FP16 is FP16, of INT8 free; FP32 is bare."""
    api = api_of("8.6")
    types, flags = api.library.DataType, api.library.BuilderFlag
    kinds = {
        "NORMALIZATION": types.FLOAT,
        "SOFTMAX": types.HALF,
        "REDUCE": types.FLOAT,
        "TOPK": types.FLOAT,
        "MATRIX_MULTIPLY": types.HALF,
        "ELEMENTWISE": types.FLOAT,
        "CONSTANT": types.HALF,
        "CAST": types.HALF,
        "QUANTIZE": types.INT8,
        "GATHER": types.INT32,
        "SHAPE": None,
    }
    made = {kind: _layer(kind, dtype) for kind, dtype in kinds.items()}
    network = Recorder("8.6", "INetworkDefinition", num_layers=len(made), get_layer=lambda index: list(made.values())[index])
    config = Recorder("8.6", "IBuilderConfig")
    api.set_types(config, network, precision)
    held = {kind: layer.values["precision"].name for kind, layer in made.items() if layer.values}
    fp32 = dict.fromkeys(("SOFTMAX", "REDUCE", "TOPK"), "FLOAT")
    rest = dict.fromkeys(("MATRIX_MULTIPLY", "ELEMENTWISE"), "HALF")
    assert held == {"fp32": {}, "fp16": {**fp32, **rest}, "int8": fp32}[precision]
    wanted = {"fp32": [], "fp16": [flags.FP16, flags.OBEY_PRECISION_CONSTRAINTS]}
    wanted["int8"] = [*wanted["fp16"], flags.INT8]
    assert [flag for _name, flag in config.calls] == wanted[precision]


@pytest.mark.parametrize(
    ("kind", "source", "target", "held"),
    [
        ("CAST", "INT32", "FLOAT", True),
        ("IDENTITY", "INT32", "FLOAT", True),
        ("CAST", "FLOAT", "FLOAT", False),
        ("CAST", "INT32", "HALF", False),
    ],
)
def test_token_ids_stay_whole_on_their_way_to_the_largest(kind: str, source: str, target: str, *, held: bool) -> None:
    """8.6 looks for the largest token id among floats: made in FP16, the ids 49,406 and 49,407 would be one."""
    api = api_of("8.6")
    types = api.library.DataType
    layer = Recorder(
        "8.6",
        "ILayer",
        type=SimpleNamespace(name=kind),
        num_outputs=1,
        get_input=lambda _index: SimpleNamespace(dtype=types[source]),
        get_output=lambda _index: SimpleNamespace(dtype=types[target]),
    )
    api.set_types(Recorder("8.6", "IBuilderConfig"), Recorder("8.6", "INetworkDefinition", num_layers=1, get_layer=lambda _: layer), "fp16")
    assert [call for call in layer.calls if call[0] == "set_output_type"] == [("set_output_type", 0, types.FLOAT)] * held
    assert not layer.values


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_strongly_typed_networks_are_left_alone(version: str) -> None:
    """From 10 on no precision flag, no layer and no tactic source is touched."""
    api, config = api_of(version), Recorder(version, "IBuilderConfig")
    api.set_types(config, Recorder(version, "INetworkDefinition"), "int8")
    api.set_tactics(config)
    assert not config.calls
    assert not config.values


def test_8_6_uses_its_own_kernels() -> None:
    """Kernels of cuBLAS and cuDNN are switched off where they are on by default."""
    api, config = api_of("8.6"), Recorder("8.6", "IBuilderConfig")
    api.set_tactics(config)
    sources = api.library.TacticSource
    ((name, bits),) = config.calls
    assert name == "set_tactic_sources"
    assert {source.name for source in sources if bits >> int(source) & 1} == {"EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"}


def test_8_6_has_no_bf16_and_no_fp8() -> None:
    """The line says what to build instead; later versions have both."""
    for precision in ("bf16", "fp8"):
        with pytest.raises(MissingRuntimeError, match=r"8\.6 builds no .* expected TensorRT 10.*trt-fp16"):
            api_of("8.6").check_precision(precision)
        api_of("10.16").check_precision(precision)
    for precision in ("fp32", "fp16", "int8"):
        api_of("8.6").check_precision(precision)


@pytest.mark.parametrize("version", VERSIONS[:3])
def test_compatibility(version: str) -> None:
    """A version-compatible plan carries no runtime, that is host code; a hardware-compatible one runs from Ampere on."""
    api, config = api_of(version), Recorder(version, "IBuilderConfig")
    api.set_compatibility(config, ())
    assert not config.calls
    api.set_compatibility(config, ("version", "hardware"))
    flags = api.library.BuilderFlag
    assert config.calls == [("set_flag", flags.VERSION_COMPATIBLE), ("set_flag", flags.EXCLUDE_LEAN_RUNTIME)]
    assert config.values == {"hardware_compatibility_level": api.library.HardwareCompatibilityLevel.AMPERE_PLUS}


@pytest.mark.parametrize("name", ["version", "hardware"])
def test_rtx_refuses_compatibility(name: str) -> None:
    """TensorRT-RTX has neither; the error is one of usage and says what its plans can do anyway."""
    with pytest.raises(UsageError, match=f"no {name} compatibility.*from compute capability 8.0"):
        api_of("rtx-1.7").set_compatibility(Recorder("rtx-1.7", "IBuilderConfig"), (name,))


def test_rtx_targets() -> None:
    """Named GPUs are set one by one; an unknown one, or one without the precision, is a usage error."""
    api, config = api_of("rtx-1.7"), Recorder("rtx-1.7", "IBuilderConfig")
    api.set_targets(config, api.targets("int8", ()))
    assert not config.values
    api.set_targets(config, api.targets("int8", ("7.5", "12.0")))
    members = api.library.ComputeCapability
    assert config.values == {"num_compute_capabilities": 2}
    assert config.calls == [("set_compute_capability", members.SM75, 0), ("set_compute_capability", members.SM120, 1)]
    with pytest.raises(UsageError, match=r"unknown compute capability.*'8.7'.*8\.6"):
        api.targets("fp32", ("8.7",))
    with pytest.raises(UsageError, match=r"compute capability 8\.6 have no fp8"):
        api.targets("fp8", ("8.9", "8.6"))


def test_fp8_names_the_gpus_that_have_it() -> None:
    """TensorRT-RTX drops the others from its default in silence; TensorRT builds for the one that is here, whatever was named."""
    api = api_of("rtx-1.7")
    assert api.targets("fp8", ()) == ("8.9", "12.0", "12.1")
    assert api.targets("bf16", ()) == api.targets("fp32", ()) == ()
    assert api_of("10.16").targets("fp8", ("8.9",)) == ()


def test_precisions_that_a_gpu_has() -> None:
    """FP8 begins at 8.9, BF16 at 8.0, and numbers are compared, not texts."""
    assert [check_sm("fp8", sm) for sm in ("8.7", "8.9", "9.0", "12.0")] == [False, True, True, True]
    assert [check_sm("bf16", sm) for sm in ("7.5", "8.0", "10.0")] == [False, True, True]
    assert check_sm("int8", "5.3")


def _finder(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]) -> None:
    """Make the adapter find these modules only; an exception is raised on import."""

    def import_module(name: str) -> Any:
        if isinstance(found[name], Exception):
            raise found[name]
        return found[name]

    monkeypatch.setattr(adapter.importlib.util, "find_spec", found.get)
    monkeypatch.setattr(adapter.importlib, "import_module", import_module)


def test_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 4 and the extra; an unknown runtime is a usage error."""
    _finder(monkeypatch, {"tensorrt_rtx_bindings": object()})
    for runtime in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(MissingRuntimeError, match=rf"clipq\[{runtime}\]'"):
            load_api(runtime)
    with pytest.raises(UsageError, match="unknown runtime 'tensorrt-rxt'"):
        load_api("tensorrt-rxt")


def test_rtx_is_found_under_both_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor's meta package, or its two wheels, whichever is there; libraries before bindings."""
    library = stand_in("rtx-1.7")
    for modules in ({"tensorrt_rtx": library}, {"tensorrt_rtx_libs": object(), "tensorrt_rtx_bindings": library}):
        _finder(monkeypatch, modules)
        assert load_api("tensorrt-rtx").library is library


def test_broken_and_old_libraries_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bindings without their libraries, and versions before 8.6, are one line with exit code 4."""
    _finder(monkeypatch, {"tensorrt": ImportError("libnvinfer.so.10: cannot open shared object file")})
    with pytest.raises(MissingRuntimeError, match=r"TensorRT cannot be loaded.*libnvinfer\.so\.10"):
        load_api("tensorrt")
    old = stand_in("8.6")
    old.__version__ = "8.5.3.1"
    _finder(monkeypatch, {"tensorrt": old})
    with pytest.raises(MissingRuntimeError, match=r"too old; found 8\.5\.3\.1"):
        load_api("tensorrt")


def test_log_keeps_what_matters() -> None:
    """Details only move the node; messages reach every listener, and nobody after it stopped."""
    log, say = Log(), SimpleNamespace
    logger = make_logger(stand_in("8.6"), log)
    with log.listen() as outer:
        logger.log(say(name="VERBOSE"), "ModelImporter.cpp:107: Parsing node: /visual/a [b]_q [QuantizeLinear]")
        with log.listen() as inner:
            logger.log(say(name="WARNING"), "careful")
        logger.log(say(name="INFO"), "more")
    logger.log(say(name="ERROR"), "unheard")
    assert [line.text for line in outer] == ["careful", "more"]
    assert [(line.text, line.node) for line in inner] == [("careful", "/visual/a [b]_q")]
    assert as_text(outer) == "WARNING: careful\nINFO: more\n"


def test_echo_of_a_missing_gpu_is_no_reason() -> None:
    """The last real error is given; the echo alone is still better than nothing."""
    log = Log()
    echo = "[checkMacros.cpp] Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)"
    with log.listen() as lines:
        assert last_failure(lines) == "no reason given"
        log.take("ERROR", echo)
        assert "insufficient" in last_failure(lines)
        log.take("ERROR", "Network must have at least one output.")
        log.take("ERROR", echo)
        log.take("WARNING", "later, but no error")
    assert last_failure(lines) == "Network must have at least one output."
    assert one_line(f"a\n  b\n{echo}") == "a b"
    assert len(one_line("x" * 1000)) == 400


def test_nested_phases_become_one_rising_percentage() -> None:
    """A phase inside a step moves within that step; nothing moves back; the end of the outermost is 100."""
    moved: list[int] = []
    percent = Percent(moved.append)
    percent.start("build", None, 4)
    percent.step("build", 0)
    percent.start("tactics", "build", 5)
    for step in range(5):
        percent.step("tactics", step)
    percent.finish("tactics")
    assert sum(moved) == 50
    percent.start("other", "build", 0)
    percent.finish("other")
    percent.step("unknown", 3)
    percent.finish("build")
    assert sum(moved) == 100
    assert min(moved) > 0


def test_monitor_bridges_and_stops() -> None:
    """Each step asks whether to go on."""
    moved: list[int] = []
    stop = [False]
    monitor = make_monitor(stand_in("10.16"), Percent(moved.append), lambda: stop[0])
    monitor.phase_start("build", None, 2)
    assert monitor.step_complete("build", 0) is True
    stop[0] = True
    assert monitor.step_complete("build", 1) is False
    monitor.phase_finish("build")
    assert sum(moved) == 100


def test_interrupt_is_told_first_and_raised_at_the_end() -> None:
    """Ctrl-C becomes a flag while TensorRT runs and KeyboardInterrupt when it has returned; the handler is put back."""
    before, told = signal.getsignal(signal.SIGINT), []

    def build() -> None:
        with interrupts(stoppable=True) as stopped:
            told.append(stopped())
            signal.raise_signal(signal.SIGINT)
            told.append(stopped())

    with pytest.raises(KeyboardInterrupt):
        build()
    assert told == [False, True]
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupt_of_a_build_that_cannot_stop_ends_the_process() -> None:
    """8.6: exit code 130 at once, because an exception must not fly through TensorRT."""
    code = (
        "import signal\nfrom clipq.engines.tensorrt.progress import interrupts\n"
        "with interrupts(stoppable=False):\n    signal.raise_signal(signal.SIGINT)\n    print('went on')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "interrupted\n")
