"""Signatures on bundles, by OpenSSF model-signing: who made it, where the manifest's hashes only say that it is whole.

The signature is `model.sig` in the bundle, over every other file of it, in the Sigstore bundle format: the
`model_signing` command reads it too. A signed bundle is not written to again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from trtship.bundle.bundle import Bundle, folder_of, manifest_bytes
from trtship.bundle.manifest import read_manifest
from trtship.bundle.names import MANIFEST, SIGNATURE
from trtship.errors import BundleCorruptError, BundleSignatureError, DependencyError, OutputError, SpecError
from trtship.files import locked, whole_file
from trtship.needs import need
from trtship.progress import SILENT, Progress

PURPOSE = "signatures"


class Trust(msgspec.Struct, frozen=True):
    """Whose signature a bundle must bear: the PEM file of a public key (an elliptic curve's: P-256, P-384 or P-521),
    or those of the certificates up to one that is trusted."""

    key: str | None = None
    certificates: tuple[str, ...] = ()

    @staticmethod
    def of(key: str | Path | None, certificates: str | Path | Sequence[str | Path] | None = None) -> Trust | None:
        """Return whose signature is asked for; None where both arguments are None.

        Args:
            key: the path of a public key.
            certificates: the path of a certificate, or several. An empty list is an error, not "no signature": who
                passes a list asks for one.

        Raises:
            SpecError: both are given, the list is empty, or a file is not there.
        """
        if key is None and certificates is None:
            return None
        asked = certificates is not None
        certificates = _listed(certificates)
        if asked and not certificates:
            raise SpecError(
                "no certificate was given",
                why="the list of certificates is empty, and a signature that nobody is trusted for proves nothing",
                do="name a certificate, or pass None to load bundles that are not signed",
            )
        if key is not None and certificates:
            raise SpecError("a key and certificates were given", why="a bundle has one signature", do="name one")
        for file in (*certificates, *([] if key is None else [key])):
            _check_file(file)
        return Trust(key=None if key is None else str(key), certificates=tuple(map(str, certificates)))


def sign_bundle(
    bundle: str | Path,
    *,
    key: str | Path,
    certificate: str | Path | None = None,
    chain: str | Path | Sequence[str | Path] = (),
    force: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Sign with the private `key` (PEM), and with the `certificate` for it and the `chain` above that one, where the
    signature is to be checked by certificates. Returns the signature's path.

    Raises BundleError, SpecError for a key that cannot be used, OutputError where it is signed already and not `force`.
    """
    opened, chain = Bundle.open(bundle, progress=progress), _listed(chain)
    for file in (key, *chain, *([] if certificate is None else [certificate])):
        _check_file(file)
    path = opened.folder / SIGNATURE
    if os.path.lexists(path) and not force:
        raise OutputError(f"{bundle} is signed", why=f"{SIGNATURE} is in it", do="--force signs it anew")
    if path.is_dir():
        raise OutputError(f"{path} is a folder", why="the signature is to be written there", do="move it elsewhere")
    if certificate is not None:
        chain = _chain_of(Path(certificate), chain)
    signing = need("model_signing.signing", purpose=PURPOSE)
    config = signing.Config().set_hashing_config(_hashing(opened.folder))
    try:
        if certificate is None:
            config.use_elliptic_key_signer(private_key=Path(key))
        else:
            config.use_certificate_signer(
                private_key=Path(key), signing_certificate=Path(certificate), certificate_chain=list(map(Path, chain))
            )
    except (
        Exception
    ) as error:  # ValueError, TypeError; AttributeError for an RSA key: model-signing has none of its own
        raise SpecError(
            f"{key} cannot sign",
            why=_reason(error),
            do="give the PEM file of an elliptic curve's private key, P-256 say",
        ) from error
    with progress.stage("sign", opened.folder.name), locked(opened.folder), whole_file(path) as draft:
        config.sign(opened.folder, draft)
        _check_signed(opened, _signed(draft))
    return path


def _chain_of(certificate: Path, chain: Sequence[str | Path]) -> tuple[str | Path, ...]:
    """Return what to sign with above a certificate: the certificate itself where it signed itself and none is given.

    Raises SpecError where the certificate's issuer is missing.
    """
    x509 = need("cryptography.x509", purpose=PURPOSE)
    try:
        own = x509.load_pem_x509_certificate(certificate.read_bytes())
        above = [one for file in chain for one in x509.load_pem_x509_certificates(Path(file).read_bytes())]
    except ValueError as error:
        files = ", ".join(map(str, (certificate, *chain)))
        raise SpecError(
            f"one of {files} is no certificate", why=str(error).splitlines()[0], do="give PEM files of certificates"
        ) from error
    if any(_issued(own, issuer) for issuer in [own, *above]):
        return tuple(chain) or (certificate,)
    missing = f"it was issued by {own.issuer.rfc4514_string()!r}"
    raise SpecError(
        f"the chain above {certificate} is missing",
        why=f"{missing}, whose certificate is not in --chain" if chain else f"{missing}, and --chain was not given",
        do="--chain FILE names the PEM file of that certificate; once for each one above it",
    )


def _issued(certificate: Any, issuer: Any) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # ValueError, TypeError, InvalidSignature of cryptography
        return False
    return True


def _check_signed(bundle: Bundle, signed: Mapping[str, str]) -> None:
    """Raises BundleCorruptError where a file was exchanged while it was signed: what was opened is to be signed."""
    data = manifest_bytes(bundle.folder)
    same = read_manifest(data, where=MANIFEST) == bundle.manifest
    wanted = {**bundle.manifest.files, MANIFEST: hashlib.sha256(data).hexdigest()}
    changed = sorted(name for name, digest in wanted.items() if signed.get(name) != digest)
    if changed or not same:
        raise BundleCorruptError(
            f"{bundle.folder} is not signed",
            why=f"{changed[0] if changed else MANIFEST} changed while it was signed",
            do="look at what changes it, and sign again",
        )


def open_trusted(bundle: str | Path, trust: Trust | None, *, progress: Progress = SILENT) -> Bundle:
    """`Bundle.open`, of a bundle that bears a valid signature of the one who is trusted; of any where `trust` is None.

    Raises BundleSignatureError, DependencyError, and what `Bundle.open` raises.
    """
    if trust is None:
        return Bundle.open(bundle, progress=progress)
    signed = check_signature(bundle, trust, progress=progress)
    opened = Bundle.open(bundle, progress=progress)
    data = manifest_bytes(opened.folder)
    if hashlib.sha256(data).hexdigest() != signed or read_manifest(data, where=MANIFEST) != opened.manifest:
        raise _invalid(opened.folder, "the manifest was exchanged while it was checked")
    return opened


def check_signature(bundle: str | Path, trust: Trust, *, progress: Progress = SILENT) -> str:
    """That every file of the bundle is as the one who is trusted signed it, and no other file is there; returns the
    SHA-256 that was signed of the manifest, which has those of all files.

    Nothing of the bundle but its bytes is looked at. Raises BundleSignatureError, SpecError for a key that is none,
    DependencyError.
    """
    folder = folder_of(bundle)
    if not (folder / SIGNATURE).is_file():
        raise BundleSignatureError(
            f"{folder} is not signed", why=f"it has no {SIGNATURE}", do="ask whom it is from for a signed one"
        )
    verifying = need("model_signing.verifying", purpose=PURPOSE)
    config = verifying.Config()
    try:
        if trust.key is not None:
            config.use_elliptic_key_verifier(public_key=Path(trust.key))
        else:
            config.use_certificate_verifier(certificate_chain=list(map(Path, trust.certificates)))
    except (
        Exception
    ) as error:  # ValueError, TypeError; AttributeError for an RSA key: model-signing has none of its own
        raise SpecError(
            f"{trust.key or ', '.join(trust.certificates)} is no public key, or no certificate",
            why=_reason(error),
            do="--verify-key takes an elliptic curve's public key (PEM), --verify-certificate a certificate",
        ) from error
    try:
        with progress.stage("check the signature", folder.name):
            config.set_hashing_config(_hashing(folder)).verify(folder, folder / SIGNATURE)
            signed = _signed(folder / SIGNATURE)
    except DependencyError:
        raise
    except Exception as error:  # model-signing has no error of its own; whatever it is, nothing was proved
        raise _invalid(folder, (str(error) or type(error).__name__).splitlines()[0]) from error
    if MANIFEST not in signed:
        raise _invalid(folder, f"it does not cover {MANIFEST}")
    return signed[MANIFEST]


def _reason(error: Exception) -> str:
    """model-signing takes a key of any kind for one of an elliptic curve."""
    return "it is a key of another kind: RSA, or Ed25519" if isinstance(error, AttributeError) else str(error)


def _signed(signature: Path) -> dict[str, str]:
    """The digests, by file, in a signature that was found valid: a statement of in-toto in a bundle of Sigstore's."""
    envelope = json.loads(signature.read_bytes())["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    return {one["name"]: one["digest"] for one in statement["predicate"]["resources"]}


def _invalid(folder: Path, why: str) -> BundleSignatureError:
    return BundleSignatureError(
        f"the signature of {folder} is not valid",
        why=why,
        do="copy the bundle again from who signed it, or name the key that signed it",
    )


def _hashing(folder: Path) -> Any:
    """Every file below the folder but the signature, links not allowed."""
    hashing = need("model_signing.hashing", purpose=PURPOSE)
    config = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
    config.add_ignored_paths(model_path=folder, paths=[SIGNATURE])
    return config.set_allow_symlinks(False)


def _listed(files: object) -> tuple[str | Path, ...]:
    """A text is one path, not a sequence of letters: an empty one, too, asks for a signature."""
    if files is None:
        return ()
    if isinstance(files, (str, os.PathLike)):
        return (Path(files),)
    if not isinstance(files, Iterable):
        raise _no_path(files)
    return tuple(files)


def _no_path(file: object) -> SpecError:
    return SpecError(
        f"{reprlib.repr(file)} is no path",
        why="it was to be a key's or a certificate's",
        do="pass the path of a PEM file, or a list of them for certificates",
    )


def _check_file(path: object) -> None:
    if not isinstance(path, (str, os.PathLike)):
        raise _no_path(path)
    if not os.fspath(path):
        raise SpecError(
            "there is no file: the path of a key or certificate is empty",
            why="an empty path names no file",
            do="pass the path of a PEM file",
        )
    if not Path(path).is_file():
        raise SpecError(
            f"there is no file {path}", why="it was to be read as a key or certificate", do="check the path"
        )
