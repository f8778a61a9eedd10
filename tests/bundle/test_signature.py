"""Signed bundles: who signed is trusted, and nobody else; with keys and certificates of openssl's kind."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

import trtship
from deployed import copy_of, reseal, run_python
from trtship.bundle import Bundle
from trtship.bundle.archive import pack_bundle, unpack_bundle
from trtship.bundle.signature import Trust, check_signature, open_trusted, sign_bundle
from trtship.errors import BundleError, BundleSignatureError, OutputError, SpecError

Deployed = Callable[[str, str], Path]
Key = ec.EllipticCurvePrivateKey


def write_key(folder: Path, name: str, curve: ec.EllipticCurve | None = None) -> Key:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    (folder / f"{name}.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    return key


def write_certificate(folder: Path, name: str, key: Key, issuer: str, signer: Key, *, authority: bool) -> None:
    now = datetime.datetime.now(datetime.UTC)

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=authority,
                crl_sign=authority,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    made = builder.sign(signer, hashes.SHA256())
    (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of ours and theirs, an authority's, and a certificate of ours under it."""
    folder = tmp_path_factory.mktemp("keys")
    ours, authority = write_key(folder, "ours"), write_key(folder, "authority")
    theirs = write_key(folder, "theirs")
    write_certificate(folder, "authority", authority, "authority", authority, authority=True)
    write_certificate(folder, "theirs", theirs, "theirs", theirs, authority=True)
    write_certificate(folder, "ours", ours, "authority", authority, authority=False)
    return folder


@pytest.fixture
def signed(deployed: Deployed, keys: Path, tmp_path: Path) -> Path:
    copy = copy_of(deployed("colours", "fp16"), tmp_path)
    sign_bundle(copy, key=keys / "ours.pem")
    return copy


def test_it_opens_for_the_key_that_signed_it_and_for_no_other(signed: Path, keys: Path) -> None:
    assert open_trusted(signed, Trust.of(keys / "ours.pub")) == Bundle.open(signed)
    with trtship.load(signed, verify_key=keys / "ours.pub", runtime="onnxruntime") as session:
        assert session.bundle.is_signed
    with pytest.raises(BundleSignatureError, match="not valid"):
        trtship.load(signed, verify_key=keys / "theirs.pub")


def test_a_bundle_without_a_signature_is_refused_where_one_is_demanded(deployed: Deployed, keys: Path) -> None:
    with pytest.raises(BundleSignatureError, match="not signed"):
        trtship.load(deployed("colours", "fp16"), verify_key=keys / "ours.pub")


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_larger_curves_sign_too(curve: ec.EllipticCurve, deployed: Deployed, tmp_path: Path) -> None:
    write_key(tmp_path, "large", curve)
    copy = copy_of(deployed("colours", "fp16"), tmp_path)
    sign_bundle(copy, key=tmp_path / "large.pem")
    open_trusted(copy, Trust.of(tmp_path / "large.pub"))


def test_certificates_are_followed_to_the_one_that_is_trusted(deployed: Deployed, keys: Path, tmp_path: Path) -> None:
    copy = copy_of(deployed("colours", "fp16"), tmp_path)
    sign_bundle(copy, key=keys / "ours.pem", certificate=keys / "ours.crt", chain=[keys / "authority.crt"])
    open_trusted(copy, Trust.of(None, [keys / "authority.crt"]))
    with pytest.raises(BundleSignatureError, match="not valid"):
        open_trusted(copy, Trust.of(None, [keys / "theirs.crt"]))


@pytest.mark.parametrize("kind", [str, Path])
def test_one_certificate_needs_no_list_around_it(deployed: Deployed, keys: Path, tmp_path: Path, kind: Any) -> None:
    copy = copy_of(deployed("colours", "fp16"), tmp_path)
    trusted = kind(keys / "authority.crt")
    sign_bundle(copy, key=keys / "ours.pem", certificate=keys / "ours.crt", chain=trusted)
    trtship.load(copy, verify_certificates=trusted, runtime="onnxruntime").close()
    with pytest.raises(BundleSignatureError, match="not valid"):
        trtship.load(copy, verify_certificates=kind(keys / "theirs.crt"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"verify_key": 3}, "3 is no path"),
        ({"verify_key": b"ours.pub"}, "b'ours.pub' is no path"),
        ({"verify_certificates": 3}, "3 is no path"),
        ({"verify_certificates": [None]}, "None is no path"),
        ({"verify_certificates": "/none.pem"}, "there is no file /none.pem"),
        ({"verify_certificates": ""}, "there is no file"),
        ({"verify_key": ""}, "there is no file"),
    ],
)
def test_what_is_no_key_and_no_certificate_is_the_users_mistake(signed: Path, wrong: dict[str, Any], said: str) -> None:
    """An empty name among them: it must not mean that nobody's signature is asked for."""
    with pytest.raises(SpecError, match=said):
        trtship.load(signed, **wrong)


def test_a_bundle_made_anew_by_somebody_else_is_not_ours(signed: Path, keys: Path) -> None:
    """Its manifest is whole and its hashes are right: only the signature tells."""
    (signed / "model.plan").write_bytes(b"code of another")
    reseal(signed)
    Bundle.open(signed)
    with pytest.raises(BundleSignatureError, match=r"model\.plan|manifest"):
        trtship.load(signed, verify_key=keys / "ours.pub")


@pytest.mark.parametrize("name", ["more.bin", ".gitignore", "evidence/more.json"])
def test_a_file_more_is_refused(signed: Path, keys: Path, name: str) -> None:
    (signed / name).write_text("x")
    with pytest.raises(BundleSignatureError, match="not valid"):
        check_signature(signed, Trust(key=str(keys / "ours.pub")))


def test_a_signature_that_leaves_the_manifest_out_is_no_signature(signed: Path, keys: Path) -> None:
    from model_signing import hashing, signing

    config = hashing.Config().set_ignored_paths(paths=["model.sig", "manifest.json"])
    signer = signing.Config().set_hashing_config(config).use_elliptic_key_signer(private_key=keys / "ours.pem")
    signer.sign(signed, signed / "model.sig")
    with pytest.raises(BundleSignatureError, match="not valid"):
        open_trusted(signed, Trust.of(keys / "ours.pub"))


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"dsseEnvelope": {}}'])
def test_what_is_no_signature_is_refused(signed: Path, keys: Path, text: str) -> None:
    (signed / "model.sig").write_text(text)
    with pytest.raises(BundleSignatureError, match="not valid"):
        open_trusted(signed, Trust.of(keys / "ours.pub"))


def test_the_signature_of_another_bundle_is_not_this_ones(
    signed: Path, deployed: Deployed, keys: Path, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    other = copy_of(deployed("colours", "fp32"), tmp_path / "b")
    (other / "model.sig").write_bytes((signed / "model.sig").read_bytes())
    with pytest.raises(BundleSignatureError, match="not valid"):
        open_trusted(other, Trust.of(keys / "ours.pub"))


def test_a_signed_bundle_is_not_written_to(signed: Path, keys: Path) -> None:
    before = (signed / "manifest.json").read_bytes()
    trtship.verify_bundle(signed)
    assert (signed / "manifest.json").read_bytes() == before
    with pytest.raises(OutputError, match="is signed"):
        Bundle.open(signed).with_files({"report.html": b"x"})
    with pytest.raises(OutputError, match="is signed"):
        sign_bundle(signed, key=keys / "theirs.pem")
    sign_bundle(signed, key=keys / "theirs.pem", force=True)
    open_trusted(signed, Trust.of(keys / "theirs.pub"))


def test_the_signature_travels_in_the_archive(signed: Path, keys: Path, tmp_path: Path) -> None:
    archive = pack_bundle(Bundle.open(signed))
    found = unpack_bundle(archive, tmp_path / "out.trtship", trust=Trust.of(keys / "ours.pub"))
    assert found.is_signed
    with pytest.raises(BundleSignatureError, match="not valid"):
        unpack_bundle(archive, tmp_path / "no.trtship", trust=Trust.of(keys / "theirs.pub"))
    assert not (tmp_path / "no.trtship").exists()


def test_the_projects_own_command_reads_the_signature(signed: Path, keys: Path) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed)]
    command += ["--signature", str(signed / "model.sig"), "--public_key", str(keys / "ours.pub")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_native_code_of_a_runtime_is_imported_for_a_wrong_signature(signed: Path, keys: Path) -> None:
    code = f"""
import sys, trtship
from trtship.errors import BundleSignatureError
try:
    trtship.load({str(signed)!r}, verify_key={str(keys / "theirs.pub")!r})
except BundleSignatureError:
    heavy = ("tensorrt", "tensorrt_rtx", "onnxruntime", "torch", "onnx")
    assert not set(heavy) & set(sys.modules), set(heavy) & set(sys.modules)
else:
    sys.exit("it was loaded")
"""
    run_python(code)


def test_mistakes_are_told_apart_from_attacks(signed: Path, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no key")
    with pytest.raises(SpecError, match="no file"):
        Trust.of(tmp_path / "absent.pub")
    with pytest.raises(SpecError, match="a key and certificates"):
        Trust.of(keys / "ours.pub", [keys / "authority.crt"])
    with pytest.raises(SpecError, match="no public key"):
        open_trusted(signed, Trust.of(tmp_path / "no.pem"))
    with pytest.raises(SpecError, match="cannot sign"):
        sign_bundle(signed, key=tmp_path / "no.pem", force=True)
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (tmp_path / "rsa.pem").write_bytes(rsa_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    with pytest.raises(SpecError, match="cannot sign"):
        sign_bundle(signed, key=tmp_path / "rsa.pem", force=True)
    with pytest.raises(BundleError):
        sign_bundle(tmp_path, key=keys / "ours.pem")
    assert json.loads((signed / "model.sig").read_bytes())
