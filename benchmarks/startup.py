"""Times `clipq-export --help` and `import clipq` against `import torch`: whole processes, interleaved.

python benchmarks/startup.py -n 15 --output benchmarks/results/startup.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from clipq.files import write_json
from clipq.machine import record

COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import clipq": [sys.executable, "-c", "import clipq"],
    "clipq-export --help": [str(Path(sys.executable).parent / "clipq-export"), "--help"],
    "clipq --help": [str(Path(sys.executable).parent / "clipq"), "--help"],
}


def seconds(command: list[str]) -> float:
    """Return the wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure in turns, after one round that is not counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(args.rounds + 1)][1:]
    figures = {
        name: {
            "median_s": statistics.median(row[name] for row in rounds),
            "of_import_torch": statistics.median(row[name] / row["import torch"] for row in rounds),
        }
        for name in COMMANDS
    }
    result = record("startup", {"rounds": args.rounds, "figures": figures})
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
