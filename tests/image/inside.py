"""Run in the container: proves that the user is not root, only /scratch and /out can be written, there is no network, compiler or torch."""

import importlib
import os
import pkgutil
import shutil
import socket
import tempfile
from pathlib import Path

import clipq

COMPILERS = ("as", "c++", "cc", "clang", "g++", "gcc", "go", "ld", "nvcc", "rustc", "tcc")
NOT_HERE = {"torch", "open_clip", "onnx", "ml_dtypes"}

if os.getuid() == 0 or os.getgid() == 0 or os.getgroups() not in ([], [os.getgid()]):
    raise SystemExit(f"runs as {os.getuid()}:{os.getgid()} with groups {os.getgroups()}")
devices = [name for _, name in socket.if_nameindex()]
if devices != ["lo"]:
    raise SystemExit(f"there is a network: {devices}")
for folder in ("/", "/opt/clipq", "/bundle", "/tmp", "/etc", "/var/tmp"):
    try:
        (Path(folder) / "written").write_text("x")
    except OSError:
        continue
    raise SystemExit(f"{folder} can be written")
if (tempfile.gettempdir(), str(Path.home())) != ("/scratch", "/scratch"):
    raise SystemExit(f"temporary files go to {tempfile.gettempdir()}, home is {Path.home()}")
(Path("/scratch") / "written").write_text("x")
found = [name for name in COMPILERS if shutil.which(name, path=os.environ["PATH"] + ":/usr/bin:/usr/local/bin")]
if found:
    raise SystemExit(f"compilers: {found}")
absent = set()
for module in pkgutil.walk_packages(clipq.__path__, "clipq."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        absent.add(str(error.name).partition(".")[0])
if absent - NOT_HERE or "torch" not in absent:
    raise SystemExit(f"modules that are missing: {sorted(absent)}, expected: {sorted(NOT_HERE)}")
print(f"uid {os.getuid()}, network {devices}, read-only but /scratch and /out, no compiler, no {', '.join(sorted(absent))}")
