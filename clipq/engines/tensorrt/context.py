"""Execution contexts whose scratch memory is ours, so that a smaller batch needs less of it; what differs between versions is here."""

from __future__ import annotations

from typing import Any

from clipq.engines.tensorrt.adapter import Api


def create_context(api: Api, engine: Any) -> Any:
    """Return an execution context without scratch memory, or None where TensorRT fails; ``set_scratch`` before it runs.

    TensorRT-RTX compiles kernels for a shape when the shape is set, not in the background while a generic kernel answers: latencies and
    embeddings must not depend on when a compiler is done.
    """
    if not hasattr(api.library, "ExecutionContextAllocationStrategy"):  # 8.6
        return engine.create_execution_context_without_device_memory()
    strategy = api.library.ExecutionContextAllocationStrategy.USER_MANAGED
    if api.runtime == "tensorrt":
        return engine.create_execution_context(strategy)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.dynamic_shapes_kernel_specialization_strategy = api.library.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)


def scratch_bytes(engine: Any, context: Any) -> int:
    """Return how much scratch memory the shapes that were set need; before TensorRT 10 that is what the profile's largest batch needs."""
    if hasattr(context, "update_device_memory_size_for_shapes"):
        return int(context.update_device_memory_size_for_shapes())
    return int(engine.device_memory_size)


def set_scratch(context: Any, address: int, size_bytes: int) -> None:
    """Give a context its scratch memory, aligned to 256 bytes as ``cudaMalloc`` aligns."""
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(address, size_bytes)
    else:
        context.device_memory = address
