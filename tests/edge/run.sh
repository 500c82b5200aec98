#!/usr/bin/env bash
# Proves that a bundle made here runs where there is no torch: Python 3.10 (JetPack 6), base install with [cpu,report] only.
set -euo pipefail
cd "$(dirname "$0")/../.."
edge_python=${EDGE_PYTHON:-python3.10}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$edge_python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --constraint constraints.txt '.[cpu,report]'
if "$work/venv/bin/python" -c 'import torch' 2>/dev/null; then
  echo "torch is here: this proves nothing" >&2
  exit 1
fi

.venv/bin/clipq-export demo:under -o "$work/bundle" --calib synthetic:scenes:calibration --calib-n 64 --quiet
clipq="$work/venv/bin/clipq"
"$clipq" doctor
"$clipq" bench "$work/bundle" --engines ort-fp32,ort-int8-static -o "$work/bench"
"$clipq" eval "$work/bundle" --engines ort-fp32,ort-int8-dynamic,ort-int8-static --baseline ort-fp32 \
  --data synthetic:scenes --ood synthetic:scenes-far --limit 200 --no-bench -o "$work/report" --quiet
test -s "$work/report/report.html"

code=0
"$clipq" eval "$work/bundle" --data synthetic:scenes --limit 20 --no-bench -o "$work/none" --quiet 2>"$work/said" || code=$?
cat "$work/said"
test "$code" = 4  # the FP32 PyTorch baseline is not here, and the line says how to get it
grep -q "clipq\[export\]" "$work/said"
echo "edge: ok on $("$edge_python" --version)"
