"""clipq pack: a bundle as one file, the same bytes every time; signed and with a bill of materials where asked for."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from clipq.cli.options import add_json, add_quiet, write_json_option
from clipq.errors import UsageError

_EPILOG = """\
examples:
  clipq pack bundle/ -o vit.clipq.tar.zst
  clipq pack --make-key release.key                                        (also writes release.key.pub)
  clipq pack bundle/ -o vit.clipq.tar.zst --sign release.key --sbom vit.cdx.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", type=Path, help="folder that clipq-export made")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="the file to write, named *.clipq.tar.zst")
    parser.add_argument(
        "--sign", metavar="KEY", type=Path, help="sign every written file with this key; minisign -V checks FILE.minisig too"
    )
    parser.add_argument("--sbom", metavar="FILE", type=Path, help="also write a bill of materials, CycloneDX 1.6, usually *.cdx.json")
    parser.add_argument("--make-key", metavar="KEY", type=Path, help="write a new key without a password, and KEY.pub, and do nothing else")
    add_json(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Pack, and tell what was written."""
    from clipq.pack.signature import make_keys, read_secret_key, sign
    from clipq.pack.write import SUFFIX, pack_bundle

    if args.make_key:
        if args.bundle or args.output:
            raise UsageError("--make-key makes a key and nothing else", fix="Leave out BUNDLE and -o.")
        print(f"{args.make_key}: key {make_keys(args.make_key).public().id}; {args.make_key}.pub checks its signatures")
        return 0
    if not args.bundle or not args.output:
        raise UsageError("nothing to pack", expected="BUNDLE and -o FILE", fix=f"Run: clipq pack BUNDLE -o NAME{SUFFIX}")
    key = read_secret_key(args.sign) if args.sign else None
    packed = pack_bundle(args.bundle, args.output)
    comment = f"clipq pack of {packed.manifest.model.id}, manifest sha256 {packed.manifest_sha256}"
    record: dict[str, Any] = {
        "pack": str(packed.path),
        "model": packed.manifest.model.id,
        "sha256": packed.sha256,
        "size_bytes": packed.size_bytes,
        "content_bytes": packed.content_bytes,
        "files": len(packed.manifest.files),
        "manifest_sha256": packed.manifest_sha256,
        "key": key.public().id if key else None,
        "signature": str(sign(packed.path, key, packed.blake2b, comment)) if key else None,
        "sbom": str(args.sbom) if args.sbom else None,
    }
    if args.sbom:
        _write_bill(args.sbom, packed, key, comment)
    if args.json:
        write_json_option(args.json, record)
    if args.json != "-":
        print(_told(record))
    return 0


def _write_bill(target: Path, packed: Any, key: Any, comment: str) -> None:
    from clipq.files import write_json
    from clipq.pack.sbom import bill_of_materials
    from clipq.pack.signature import sign

    write_json(target, bill_of_materials(packed))
    if key:
        sign(target, key, hashlib.blake2b(target.read_bytes()).digest(), f"bill of materials of the {comment}")


def _told(record: dict[str, Any]) -> str:
    sizes = f"{record['content_bytes'] / 1e6:.1f} MB in {record['size_bytes'] / 1e6:.1f} MB"
    lines = [f"{record['pack']}: {record['model']}, {record['files']} files and the manifest, {sizes}", f"sha256 {record['sha256']}"]
    if record["signature"]:
        lines.append(f"signed by key {record['key']}: {record['signature']}")
    if record["sbom"]:
        lines.append(f"bill of materials: {record['sbom']}")
    return "\n".join(lines)
