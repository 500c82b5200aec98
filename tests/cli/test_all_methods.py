"""Every quantization method on both towers, from the command line, in one run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clipq.artifact import Bundle
from clipq.cli.main import export_main
from clipq.engines.golden import golden_of
from clipq.engines.table import open_engine
from clipq.methods import METHODS, engine_ids

EVERY = engine_ids(METHODS, ["W8A8", "W4A32"])


def _export(model: str, folder: Path, *options: str) -> Bundle:
    command = [model, "-o", str(folder), "--engines", "ort-fp32", "--towers", "image,text", "--calib", "synthetic:scenes:calibration"]
    command += ["--method", ",".join(METHODS), "--bits", "W8A8,W4A32", "--quiet", *options]
    command += ["--qat-steps", "4", "--qat-every", "2", "--qat-pairs", "64"]
    assert export_main(command) == 0
    return Bundle.open(folder)


def _check(bundle: Bundle) -> None:
    """Every engine opens, has both towers in integers, and stays near FP32 on the golden inputs; trained towers have their tables."""
    bundle.verify()
    golden = golden_of(bundle)
    for engine_id in EVERY:
        assert bundle.engine(engine_id).quantized == ("image", "text")
        with open_engine(bundle, engine_id) as engine:
            for tower in ("image", "text"):
                found, exact = engine.run(tower, golden.inputs(tower)), golden.outputs(tower)
                cosines = (found * exact).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
                assert cosines.mean() > (0.99 if "w8a8" in engine_id else 0.95), (engine_id, tower)
        if METHODS[engine_id.split("-", 2)[2]].family == "qat":
            said = json.loads(bundle.file(f"engines/{engine_id}/engine.json").read_text())["graphs"]
            for tower in ("image", "text"):
                name = f"towers/{tower}.{engine_id.removeprefix('ort-')}"
                assert said[f"{name}.onnx"]["training"]["steps"] == 4
                steps = [line.split(",")[0] for line in bundle.file(f"{name}.training.csv").read_text().splitlines()]
                assert steps == ["step", "0", "2", "4"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", ["demo:under", "demo:over"])
def test_every_method_runs_on_both_towers_of_a_demo_model(model: str, tmp_path: Path) -> None:
    """On the embedded models, in one command."""
    _check(_export(model, tmp_path / "bundle", "--calib-n", "64"))
