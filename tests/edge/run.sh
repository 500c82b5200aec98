#!/usr/bin/env bash
# Proves that a bundle made here is verified and runs where there is no torch: Python 3.10 (JetPack 6), base install with [cpu] only.
set -euo pipefail
cd "$(dirname "$0")/../.."
edge_python=${EDGE_PYTHON:-python3.10}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
edge() { env -u PYTHONPATH "$work/venv/bin/$1" "${@:2}"; } # only what is installed there

env -u PYTHONPATH "$edge_python" -m venv "$work/venv"
edge python -m pip install --quiet --constraint constraints.txt '.[cpu]'
for library in torch open_clip onnx jinja2 pyarrow; do
  if edge python -c "import $library" 2>/dev/null; then
    echo "$library is here: this proves nothing" >&2
    exit 1
  fi
done

.venv/bin/clipq-export demo:under -o "$work/bundle" --calib synthetic:scenes:calibration --calib-n 64 --classifier scenes --quiet
.venv/bin/clipq verify "$work/bundle" --json "$work/host.json" --quiet
edge python - "$work/photos" <<'PYTHON'
import sys
from pathlib import Path

from clipq.calib_data.synthetic import open_synthetic

scenes = open_synthetic("scenes")
for sample in scenes.read(range(100)):
    folder = Path(sys.argv[1]) / scenes.classnames[sample.label]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / sample.id.rpartition("/")[2]).write_bytes(sample.data)
PYTHON

edge clipq doctor
edge clipq verify "$work/bundle" --json "$work/edge.json"
edge clipq compare "$work/host.json" "$work/edge.json" --fail-on 'cosine_min.value<0.99'
edge clipq bench "$work/bundle" --engines ort-fp32,ort-int8-static -o "$work/bench"
common=(--baseline ort-fp32 --no-bench --quiet)
edge clipq eval "$work/bundle" --engines ort-fp32,ort-int8-dynamic,ort-int8-static "${common[@]}" \
  --data synthetic:scenes --ood synthetic:scenes-far --limit 200 -o "$work/report"
test -s "$work/report/report.json"
test -s "$work/report/report.md"
edge clipq eval "$work/bundle" "${common[@]}" --classifier scenes --data "imagefolder:$work/photos" --limit 50 -o "$work/folder"
test -s "$work/folder/report.md"

code=0
edge clipq eval "$work/bundle" --data synthetic:scenes --limit 20 --no-bench -o "$work/none" --quiet 2>"$work/said" || code=$?
cat "$work/said"
test "$code" = 4  # the FP32 PyTorch baseline is not here, and the line says how to get it
grep -q "clipq\[export\]" "$work/said"

printf x >>"$work/bundle/towers/image.int8.onnx"
code=0
edge clipq verify "$work/bundle" --quiet 2>"$work/said" || code=$?
cat "$work/said"
test "$code" = 5  # a file that is not what the manifest names
echo "edge: ok on $("$edge_python" --version)"
