"""`trtship sign`: a signature in the bundle, by OpenSSF model-signing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtship.cli.console import Console

HELP = "sign a bundle with a private key, and with a certificate for it"
EXAMPLE = "trtship sign swin.trtship --key private.pem"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "--key",
        metavar="FILE",
        required=True,
        help="PEM file of an elliptic curve's private key (P-256, P-384, P-521), not encrypted: "
        "openssl ecparam -name prime256v1 -genkey -noout -out private.pem",
    )
    parser.add_argument("--certificate", metavar="FILE", help="PEM file of the certificate for the key")
    parser.add_argument(
        "--chain",
        metavar="FILE",
        action="append",
        default=[],
        help="PEM file of a certificate above that one, its issuer's at least; may be repeated (default: none, for a "
        "certificate that signed itself)",
    )
    parser.add_argument("--force", action="store_true", help="sign anew what is signed")


def run(arguments: argparse.Namespace, console: Console) -> int:
    from trtship.bundle.signature import sign_bundle

    path = sign_bundle(
        arguments.bundle,
        key=arguments.key,
        certificate=arguments.certificate,
        chain=arguments.chain,
        force=arguments.force,
        progress=console.progress,
    )
    console.result({"bundle": arguments.bundle, "signature": str(path)})
    console.print(f"signature: {path}")
    return 0
