"""Asking for a signature fails closed; signing with a certificate tells what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_signature import write_certificate, write_key

import trtship
from deployed import copy_of
from trtship.bundle import Bundle
from trtship.bundle.archive import pack_bundle, unpack_bundle
from trtship.bundle.signature import Trust, open_trusted, sign_bundle
from trtship.cli.main import main
from trtship.errors import BundleCorruptError, BundleSignatureError, SpecError

Deployed = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`self`: a certificate that signed itself; `root` issued `direct` and `middle`, and that one `leaf`."""
    folder = tmp_path_factory.mktemp("keys")
    made = {name: write_key(folder, name) for name in ("self", "root", "middle", "leaf", "direct", "stranger")}
    write_certificate(folder, "self", made["self"], "self", made["self"], authority=True)
    write_certificate(folder, "root", made["root"], "root", made["root"], authority=True)
    write_certificate(folder, "stranger", made["stranger"], "stranger", made["stranger"], authority=True)
    write_certificate(folder, "middle", made["middle"], "root", made["root"], authority=True)
    write_certificate(folder, "leaf", made["leaf"], "middle", made["middle"], authority=False)
    write_certificate(folder, "direct", made["direct"], "root", made["root"], authority=False)
    return folder


@pytest.fixture
def folder(deployed: Deployed, tmp_path: Path) -> Path:
    return copy_of(deployed("colours", "fp16"), tmp_path)


def test_a_certificate_that_signed_itself_needs_no_chain(folder: Path, keys: Path) -> None:
    sign_bundle(folder, key=keys / "self.pem", certificate=keys / "self.crt")
    assert open_trusted(folder, Trust.of(None, keys / "self.crt")).is_signed
    with pytest.raises(BundleSignatureError):
        open_trusted(folder, Trust.of(None, keys / "stranger.crt"))


@pytest.mark.parametrize(("name", "issuer"), [("leaf", "middle"), ("direct", "root")])
def test_a_chain_that_is_missing_is_told_with_the_issuer(folder: Path, keys: Path, name: str, issuer: str) -> None:
    for chain in ([], [keys / "stranger.crt"]):
        with pytest.raises(SpecError, match="chain") as caught:
            sign_bundle(folder, key=keys / f"{name}.pem", certificate=keys / f"{name}.crt", chain=chain)
        assert f"CN={issuer}" in caught.value.why
        assert "--chain" in caught.value.do
        assert not (folder / "model.sig").exists()


def test_with_its_chain_it_is_signed_and_trusted(folder: Path, keys: Path) -> None:
    chain = [keys / "middle.crt", keys / "root.crt"]
    sign_bundle(folder, key=keys / "leaf.pem", certificate=keys / "leaf.crt", chain=chain)
    assert open_trusted(folder, Trust.of(None, keys / "root.crt")).is_signed


def test_what_is_no_certificate_is_told(folder: Path, keys: Path) -> None:
    for certificate, chain in (("leaf.pem", []), ("leaf.crt", ["leaf.pub"])):
        with pytest.raises(SpecError, match="no certificate"):
            sign_bundle(
                folder, key=keys / "leaf.pem", certificate=keys / certificate, chain=[keys / one for one in chain]
            )


def test_what_changes_while_it_is_signed_is_not_signed(
    folder: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_signing import signing

    sign = signing.Config.sign

    def meanwhile(self: Any, *arguments: Any) -> Any:
        (folder / "model.plan").write_bytes(b"another plan")
        return sign(self, *arguments)

    monkeypatch.setattr(signing.Config, "sign", meanwhile)
    with pytest.raises(BundleCorruptError, match="is not signed"):
        sign_bundle(folder, key=keys / "self.pem")
    assert not (folder / "model.sig").exists()


EMPTY: list[dict[str, Any]] = [
    {"verify_certificates": []},
    {"verify_certificates": ()},
    {"verify_certificates": ""},
    {"verify_certificates": [""]},
    {"verify_certificates": iter([])},
    {"verify_certificates": {}},
    {"verify_certificates": [None]},
    {"verify_key": ""},
    {"verify_key": Path("")},
    {"verify_key": "", "verify_certificates": []},
]


@pytest.mark.parametrize("trust", EMPTY, ids=range(len(EMPTY)))
def test_a_list_that_came_out_empty_loads_nothing(folder: Path, trust: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        trtship.load(folder, runtime="onnxruntime", **trust)
    assert caught.value.exit_code == 2


def test_an_opened_bundle_is_no_way_around_it(folder: Path) -> None:
    with pytest.raises(SpecError):
        trtship.load(Bundle.open(folder), runtime="onnxruntime", verify_certificates=[])


def test_nobody_asked_loads_what_is_not_signed(folder: Path) -> None:
    trtship.load(folder, runtime="onnxruntime").close()
    assert Trust.of(None, None) is None


@pytest.mark.parametrize("option", ["--verify-key", "--verify-certificate"])
def test_an_empty_path_on_the_command_line_is_refused(
    folder: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = pack_bundle(Bundle.open(folder), tmp_path / "a.zip")
    for command in (
        ["run", str(folder), "no.png"],
        ["inspect", str(folder)],
        ["export-triton", str(folder), str(tmp_path / "models")],
        ["unpack", str(archive), "-o", str(tmp_path / "out")],
    ):
        assert main([*command, option, ""]) == 2
        assert f"{option} is empty" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "out").exists()


def test_unpacking_fails_closed_too(folder: Path, tmp_path: Path) -> None:
    archive = pack_bundle(Bundle.open(folder), tmp_path / "a.zip")
    with pytest.raises(SpecError):
        unpack_bundle(archive, tmp_path / "out", trust=Trust.of(None, []))
