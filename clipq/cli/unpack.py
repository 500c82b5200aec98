"""clipq unpack: a pack to a bundle folder, checked byte by byte before the folder appears."""

from __future__ import annotations

import argparse
from pathlib import Path

from clipq.cli.options import add_json, add_output, add_quiet, write_json_option
from clipq.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("pack", metavar="FILE", type=Path, help="file that clipq pack wrote")
    add_output(parser, "folder of the bundle; new or empty")
    parser.add_argument(
        "--verify-key",
        metavar="PUBKEY",
        action="append",
        default=[],
        help="refuse the pack unless FILE.minisig is a signature by this key, a file or minisign's line of base64; may be given again",
    )
    parser.add_argument("--require-signature", action="store_true", help="an error where no --verify-key is given, for scripts")
    add_json(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Unpack, and tell what is in it."""
    from clipq.pack.read import unpack_bundle
    from clipq.pack.signature import read_public_key

    if args.require_signature and not args.verify_key:
        raise UsageError("nothing to check the signature with", expected="--verify-key PUBKEY", fix="Name the signer's public key.")
    unpacked = unpack_bundle(args.pack, args.output, [read_public_key(text) for text in args.verify_key])
    record = {
        "bundle": str(unpacked.folder),
        "model": unpacked.manifest.model.id,
        "engines": list(unpacked.manifest.engines),
        "files": len(unpacked.manifest.files),
        "manifest_sha256": unpacked.manifest_sha256,
        "signed_by": unpacked.signed_by.id if unpacked.signed_by else None,
        "comment": unpacked.comment or None,
    }
    if args.json:
        write_json_option(args.json, record)
    if args.json != "-":
        signed = f"signed by key {record['signed_by']}" if unpacked.signed_by else "no signature asked for"
        print(f"{record['bundle']}: {record['model']}, {record['files']} files and the manifest, {signed}")
    return 0
