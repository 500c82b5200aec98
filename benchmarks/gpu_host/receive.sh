#!/usr/bin/env bash
# TRANSFER/receive.sh HOST: keeps one transfer on the host.
set -euo pipefail
mkdir -p "$1/pieces"
here=$(cd "$(dirname "$0")" && pwd)
cp "$here"/{unpack,run}.sh "$1/"
find "$here" -maxdepth 1 -type f ! -name '*.sh' -exec cp {} "$1/pieces/" \;
ls "$1/pieces"
