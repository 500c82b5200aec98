"""Writes down the names of an installed TensorRT: ``python record.py tensorrt > names/8.6.txt``; runs on Python 3.8 and newer.

The bindings alone are enough: their import needs ``libnvinfer``, ``libnvinfer_plugin`` and ``libnvonnxparser``, and empty stand-ins
of these that define the dozen ``create*`` and ``get*`` functions satisfy it, because nothing is called here.
"""

import importlib
import re
import sys

_SKIPPED = re.compile(r"I?Plugin|IPlugin|Dims|.+Layer$|IExprBuilder|DimensionExpr")  # nothing of ours touches these
_KEPT = re.compile(r"ILayer$")


def names_of(value: object) -> "list[str]":
    """Return the public names of a module or class, sorted."""
    return sorted(name for name in dir(value) if not name.startswith("_"))


def main() -> None:
    """Print the version, the names of the module, and those of each of its classes."""
    module = importlib.import_module(sys.argv[1])
    if len(sys.argv) > 2:  # TensorRT-RTX: the wheel of the libraries first, then the one of the bindings
        module = importlib.import_module(sys.argv[2])
    print("version:", module.__version__)
    classes = {name: value for name, value in vars(module).items() if isinstance(value, type) and not name.startswith("_")}
    kept = {name: value for name, value in sorted(classes.items()) if _KEPT.match(name) or not _SKIPPED.match(name)}
    print("module:", *sorted(kept))
    for name, value in kept.items():
        print(name + ":", *names_of(value))


if __name__ == "__main__":
    main()
