#!/usr/bin/env bash
# HOST/run.sh RESULTS [MINUTES] [OPTION...]: measures what is not measured yet; record, page and logs go to RESULTS.
# Call it again to go on where the time ended: what was done is kept in HOST.
set -uo pipefail
mkdir -p "$1"
results=$(cd "$1" && pwd)
cd "$(dirname "$0")" || exit 1
options=(--minutes "${2:-9}" --work work --results "$results" --page "$results/gpu.md" --resume)
[ -d shared ] && options+=(--shared shared)
[ -d tensorrt ] && options+=(--python-tensorrt tensorrt/python)
PYTHONPATH=$PWD/site PYTHONUNBUFFERED=1 "${PYTHON:-python3}" project/benchmarks/gpu "${options[@]}" "${@:3}"
code=$?
tar -czf "$results/logs.tar.gz" -C work logs results samples 2>/dev/null
cp work/record.json work/rehearsal.md "$results/" 2>/dev/null
exit $code
