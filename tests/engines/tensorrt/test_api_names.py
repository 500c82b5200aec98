"""Every TensorRT name that our code touches exists in each version that it is touched in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tensorrt_names import NAMES, VERSIONS

from clipq.engines.tensorrt import parse, weak_types
from clipq.engines.tensorrt.adapter import load_api
from clipq.errors import MissingRuntimeError

FOLDER = Path(__file__).resolve().parents[3] / "clipq" / "engines" / "tensorrt"
ALL = VERSIONS
OLD, NEW, RTX = ("8.6",), ("10.16", "11.4", "rtx-1.7"), ("rtx-1.7",)
TENSORRT = ("8.6", "10.16", "11.4")

# Owner -> versions -> names. A name that is new to the code must be entered here, or the test below says so.
USED: dict[str, dict[tuple[str, ...], str]] = {
    "module": {
        ALL: "Builder BuilderFlag ILogger LayerInformationFormat NetworkDefinitionCreationFlag OnnxParser ProfilingVerbosity Runtime",
        OLD: "DataType TacticSource",
        TENSORRT: "HardwareCompatibilityLevel",
        NEW: "ExecutionContextAllocationStrategy IProgressMonitor",
        RTX: "ComputeCapability DynamicShapesKernelSpecializationStrategy EngineInvalidityDiagnostics EngineValidity",
    },
    "BuilderFlag": {ALL: "TF32", TENSORRT: "EXCLUDE_LEAN_RUNTIME VERSION_COMPATIBLE", OLD: "FP16 INT8 OBEY_PRECISION_CONSTRAINTS"},
    "NetworkDefinitionCreationFlag": {OLD: "EXPLICIT_BATCH", NEW: "STRONGLY_TYPED"},
    "DataType": {OLD: "FLOAT HALF INT32"},
    "HardwareCompatibilityLevel": {TENSORRT: "AMPERE_PLUS"},
    "TacticSource": {OLD: "EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS"},
    "ProfilingVerbosity": {ALL: "DETAILED"},
    "LayerInformationFormat": {ALL: "JSON"},
    "ExecutionContextAllocationStrategy": {NEW: "USER_MANAGED"},
    "DynamicShapesKernelSpecializationStrategy": {RTX: "EAGER"},
    "EngineValidity": {RTX: "INVALID"},
    "Builder": {ALL: "build_serialized_network create_builder_config create_network create_optimization_profile"},
    "IBuilderConfig": {
        ALL: "add_optimization_profile clear_flag get_flag profiling_verbosity set_flag",
        OLD: "set_tactic_sources",
        TENSORRT: "create_timing_cache get_timing_cache hardware_compatibility_level set_timing_cache",
        NEW: "progress_monitor",
        RTX: "num_compute_capabilities set_compute_capability",
    },
    "INetworkDefinition": {ALL: "get_input get_layer get_output num_inputs num_layers num_outputs unmark_output"},
    "ILayer": {ALL: "get_output num_outputs type", OLD: "get_input precision set_output_type"},
    "ITensor": {ALL: "dtype name shape"},
    "IHostMemory": {ALL: "nbytes"},
    "IOptimizationProfile": {ALL: "set_shape"},
    "ITimingCache": {TENSORRT: "combine serialize"},
    "OnnxParser": {ALL: "get_error num_errors parse_from_file"},
    "ParserError": {ALL: "desc", NEW: "node_name node_operator"},
    "Runtime": {ALL: "deserialize_cuda_engine engine_host_code_allowed", RTX: "engine_header_size get_engine_validity"},
    "ICudaEngine": {
        ALL: "create_engine_inspector get_tensor_dtype get_tensor_mode get_tensor_name get_tensor_profile_shape get_tensor_shape "
        "num_io_tensors",
        OLD: "create_execution_context_without_device_memory device_memory_size",
        NEW: "create_execution_context",
        RTX: "create_runtime_config",
    },
    "IRuntimeConfig": {RTX: "dynamic_shapes_kernel_specialization_strategy set_execution_context_allocation_strategy"},
    "IExecutionContext": {
        ALL: "execute_async_v3 set_input_shape set_tensor_address",
        OLD: "device_memory",
        NEW: "set_device_memory update_device_memory_size_for_shapes",
    },
    "EngineInspector": {ALL: "execution_context get_engine_information"},
    "ILogger": {ALL: "log"},
    "IProgressMonitor": {NEW: "phase_finish phase_start step_complete"},
}
# Names of Python, of numpy or of our own classes that some class of TensorRT happens to have too.
OURS = {
    *[
        "DEFAULT",
        "allocate",
        "append",
        "clear",
        "count",
        "data",
        "engine",
        "file",
        "free",
        "kind",
        "logger",
        "metadata",
        "node",
        "pop",
        "read",
        "tactic",
        "value",
        "write",
    ]
}


def _rows(version: str) -> list[tuple[str, str]]:
    return [
        (owner, name) for owner, used in USED.items() for versions, names in used.items() if version in versions for name in names.split()
    ]


def _written() -> set[str]:
    """Return every attribute, ``hasattr`` word and overridden method in the folder."""
    words: set[str] = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                words.add(node.attr)
            elif isinstance(node, ast.ClassDef) and any(isinstance(base, ast.Attribute) for base in node.bases):  # a class of the library
                words.update(part.name for part in node.body if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"getattr", "hasattr", "setattr"}:
                words.update(word.value for word in node.args[1:2] if isinstance(word, ast.Constant))
    return words


@pytest.mark.parametrize("version", VERSIONS)
def test_names_exist_in_the_versions_they_are_used_in(version: str) -> None:
    """No version lacks a name that our code touches there."""
    missing = [f"{owner}.{name}" for owner, name in _rows(version) if name not in NAMES[version].get(owner, frozenset())]
    assert not missing


def test_table_is_complete() -> None:
    """A word in the code that any TensorRT has as a name is in the table, or known to be somebody else's; nothing in it is stale."""
    known = {name for names in NAMES.values() for owned in names.values() for name in owned}
    table = {name for version in VERSIONS for _, name in _rows(version)}
    words = _written()
    assert (words & known) - table - OURS == set(), "enter these names, with the versions they are used in"
    assert table - words == set(), "the code no longer uses these"
    assert OURS - words == set(), "the code no longer has these words"


def test_names_that_are_compared_as_text_exist() -> None:
    """Layers, types and severities that are told apart by their name are called so."""
    for version in VERSIONS:
        names = NAMES[version]
        assert {"VERBOSE", "WARNING", "ERROR", "INTERNAL_ERROR"} <= names["ILogger"]
        assert {"INPUT", "OUTPUT"} <= names["TensorIOMode"]
        assert "QUANTIZE" in names["LayerType"]
    assert set(weak_types._FREE + weak_types._FP32) <= NAMES["8.6"]["LayerType"]
    assert {parse._TYPES["fp16"], parse._TYPES["int8"]} <= NAMES["8.6"]["DataType"]
    for version in NEW:
        assert set(parse._TYPES.values()) <= NAMES[version]["DataType"]


def test_no_implicit_calibration() -> None:
    """Ranges come from Q/DQ alone: nothing in the folder touches a calibrator or a dynamic range."""
    assert not [word for word in _written() if "calibrat" in word.lower() or "dynamic_range" in word]


def test_only_the_adapter_imports_the_library() -> None:
    """No other file names TensorRT's modules."""
    modules = {"tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not modules.intersection(names), path
    texts = {path.name for path in FOLDER.glob("*.py") if "tensorrt_rtx_bindings" in path.read_text()}
    assert texts == {"adapter.py"}


def test_installed_rtx_has_the_recorded_names() -> None:
    """The real module has every name that the table gives to TensorRT-RTX."""
    try:
        library = load_api("tensorrt-rtx").library
    except MissingRuntimeError as error:
        pytest.skip(str(error))
    owners = {"module": library}
    missing = [f"{owner}.{name}" for owner, name in _rows("rtx-1.7") if not hasattr(owners.get(owner) or getattr(library, owner), name)]
    assert not missing
