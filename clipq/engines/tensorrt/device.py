"""The CUDA device, asked through the driver's own library: TensorRT's runtimes crash the process where there is none."""

from __future__ import annotations

import ctypes
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipq.errors import MissingRuntimeError

_LIBRARY = "libcuda.so.1"
_ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_DRIVER_FILES = (Path("/sys/module/nvidia/version"), Path("/proc/driver/nvidia/version"))  # the first is absent in some containers


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """The first CUDA device that this process may see (``CUDA_VISIBLE_DEVICES`` counts).

    Attributes:
        name: As the driver says it, e.g. ``Orin`` or ``NVIDIA H200``.
        sm: Compute capability, e.g. ``8.7``.
        driver: Version of the kernel driver, e.g. ``550.54.14``; ``unknown`` where the system does not tell.
        cuda: Newest CUDA version that the driver serves, e.g. ``12.4``.
        memory_bytes: Total device memory; on Jetson the memory that processor and GPU share.
    """

    name: str
    sm: str
    driver: str
    cuda: str
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the facts as a JSON value."""
        return asdict(self)


def require_device() -> DeviceFacts:
    """Return the facts of the CUDA device; to be called before TensorRT or a CUDA binding is touched.

    Raises:
        MissingRuntimeError: There is no NVIDIA driver, or it has no device for this process.
    """
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise MissingRuntimeError("no NVIDIA driver", found=error, fix="Install the driver; start a container with --gpus all.") from error
    _call(driver, "cuInit", ctypes.c_uint(0))
    count = ctypes.c_int(0)
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        raise MissingRuntimeError("no CUDA device", found="a driver with 0 devices", fix="See nvidia-smi and CUDA_VISIBLE_DEVICES.")
    return _facts(driver)


def _facts(driver: ctypes.CDLL) -> DeviceFacts:
    device, version, name, memory = ctypes.c_int(0), ctypes.c_int(0), ctypes.create_string_buffer(256), ctypes.c_size_t(0)
    _call(driver, "cuDeviceGet", ctypes.byref(device), 0)
    _call(driver, "cuDriverGetVersion", ctypes.byref(version))
    _call(driver, "cuDeviceGetName", name, len(name), device)
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    major, minor = (_attribute(driver, device, which) for which in (_ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR))
    return DeviceFacts(
        name=name.value.decode(errors="replace"),
        sm=f"{major}.{minor}",
        driver=_driver_version(),
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        memory_bytes=memory.value,
    )


def _attribute(driver: ctypes.CDLL, device: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int(0)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), which, device)
    return value.value


def _call(driver: ctypes.CDLL, function: str, *arguments: Any) -> None:
    status = getattr(driver, function)(*arguments)
    if status != 0:
        raise MissingRuntimeError(
            "no usable CUDA device", found=f"{function}: {_error_name(driver, status)}", fix="See nvidia-smi and CUDA_VISIBLE_DEVICES."
        )


def _error_name(driver: ctypes.CDLL, status: int) -> str:
    name = ctypes.c_char_p()
    driver.cuGetErrorName(status, ctypes.byref(name))
    return name.value.decode() if name.value else f"error {status}"


def _driver_version() -> str:
    for path in _DRIVER_FILES:
        if path.is_file():
            words = path.read_text(errors="replace").split()
            found = [word for word in words if word[0].isdigit() and word.count(".") >= 1 and word.replace(".", "").isdigit()]
            if found:
                return found[0]
    return "unknown"
