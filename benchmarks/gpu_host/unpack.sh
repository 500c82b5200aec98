#!/usr/bin/env bash
# HOST/unpack.sh: checks and unpacks all transfers, lays the wheels beside the Python that has torch, and says what is usable.
# PYTHON (default python3) is the one that has torch.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
(cd pieces && sha256sum --check --quiet SHA256SUMS)
cat pieces/piece.* | tar -xf -
tar -xzf project.tar.gz
"$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target site wheels/*.whl
if [ -e tensorrt.tar.xz ]; then
  mkdir -p tensorrt
  if command -v xz >/dev/null; then
    xz -dc -T0 tensorrt.tar.xz | tar -C tensorrt -xf -
  else
    "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1], "r:xz").extractall("tensorrt", filter="fully_trusted")' tensorrt.tar.xz
  fi
fi
rm -rf pieces tensorrt.tar.xz project.tar.gz
echo '{}' | PYTHONPATH=$PWD/site "$python" project/benchmarks/gpu part facts:facts - -
if [ -d tensorrt ]; then echo '{}' | tensorrt/python project/benchmarks/gpu part facts:facts - -; fi
