"""The driver is asked for a device first, and what it lacks is one line with exit code 4."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from clipq.engines.tensorrt import device
from clipq.engines.tensorrt.device import DeviceFacts, require_device
from clipq.errors import MissingRuntimeError

NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


class Driver:
    """libcuda as far as it is asked, of a machine with one Jetson."""

    def __init__(self, *, status: int = 0, count: int = 1) -> None:
        self.status = status
        self.count = count

    def cuInit(self, _flags: Any) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, handle: Any, ordinal: int) -> int:
        handle._obj.value = ordinal
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12020
        return 0

    def cuDeviceGetName(self, name: Any, length: int, _device: Any) -> int:
        assert length == len(name)
        name.value = b"Orin"
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, _device: Any) -> int:
        memory._obj.value = 8 << 30
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, _device: Any) -> int:
        value._obj.value = {75: 8, 76: 7}[which]
        return 0

    def cuGetErrorName(self, status: int, name: Any) -> int:
        assert status == NO_DEVICE
        name._obj.value = b"CUDA_ERROR_NO_DEVICE"
        return 0


def _use(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libcuda.so.1": driver}[name])


def test_facts_of_the_device_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Name, compute capability, driver, CUDA version and memory come from the driver and are plain JSON."""
    (tmp_path / "version").write_text("540.3.0\n")
    monkeypatch.setattr(device, "_DRIVER_FILES", (tmp_path / "absent", tmp_path / "version"))
    _use(monkeypatch, Driver())
    facts = require_device()
    assert facts == DeviceFacts("Orin", "8.7", "540.3.0", "12.2", 8 << 30)
    assert facts.to_json() == {"name": "Orin", "sm": "8.7", "driver": "540.3.0", "cuda": "12.2", "memory_bytes": 8 << 30}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version:  gcc 12.2.0", "550.54.14"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.3.0  Release Build  (buildbrain@host)", "540.3.0"),
        ("", "unknown"),
    ],
)
def test_driver_version_is_found_in_what_the_system_says(text: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both forms of the driver's file are read, and one that says nothing is no error."""
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(device, "_DRIVER_FILES", (tmp_path / "version",))
    assert device._driver_version() == expected


def test_no_driver_ends_with_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libcuda the line names the library that is missing and what to install."""

    def fail(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    with pytest.raises(MissingRuntimeError, match=r"no NVIDIA driver; found libcuda\.so\.1.*Install the driver") as caught:
        require_device()
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("driver", "message"), [(Driver(status=NO_DEVICE), "cuInit: CUDA_ERROR_NO_DEVICE"), (Driver(count=0), "a driver with 0 devices")]
)
def test_driver_without_a_device_ends_with_4(driver: Driver, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that has nothing for this process is told from no driver at all."""
    _use(monkeypatch, driver)
    with pytest.raises(MissingRuntimeError, match=message):
        require_device()
