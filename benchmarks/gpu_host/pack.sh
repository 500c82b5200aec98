#!/usr/bin/env bash
# Packs everything a GPU host without a network lacks into pieces of at most MIB, one folder per transfer.
#   pack.sh OUT MIB [--shared FOLDER] [--tensorrt PIECES] [--onnxruntime VERSION]
# PYTHON (default python3) only fetches wheels; they are those for Python 3.12 on x86-64.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1 mib=$2
shift 2
mkdir -p "$out"
stage=$(mktemp -d "$out/stage.XXXXXX")
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/wheels"

fetch() {
  PYTHONSAFEPATH=1 "${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --dest "$stage/wheels" "$@"
}

fetch --requirement "$here/wheels-torch.txt"
git -C "$here/../.." archive --format=tar.gz --prefix=project/ HEAD >"$stage/project.tar.gz"
while (($#)); do
  case $1 in
    --shared) mkdir "$stage/shared" && cp -rL "$2/models" "$stage/shared/" && cp -rL "$2/data" "$stage/shared/" ;;
    --tensorrt) cat "$2"/piece.[0-9][0-9] >"$stage/tensorrt.tar.xz" ;;
    --onnxruntime) fetch "onnxruntime-gpu==$2" ;;
    *) echo "unknown option $1" >&2 && exit 2 ;;
  esac
  shift 2
done
rm -rf "$stage"/shared/data/{published,clip_vitb32_reference,predictions}  # nothing here reads them

rm -rf "$out"/transfer-*
tar -C "$stage" -cf - . | split --bytes="${mib}M" --numeric-suffixes --suffix-length=2 - "$out/piece."
(cd "$out" && sha256sum piece.* >SHA256SUMS)
for piece in "$out"/piece.*; do
  folder=$out/transfer-${piece##*.}
  mkdir "$folder" && mv "$piece" "$folder/" && cp "$here"/{receive,unpack,run}.sh "$folder/"
done
mv "$out/SHA256SUMS" "$folder/"  # with the last one
du -sm "$out"/transfer-*
