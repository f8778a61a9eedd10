"""What is read is a regular file, told by the descriptor that is read from."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from io import BytesIO
from pathlib import Path

import pytest

from trtship.calibrate.feeds import feeds_of_folder
from trtship.cli.main import main
from trtship.deployment.options import MAX_LABEL_BYTES, read_labels
from trtship.errors import InputError, SpecError, TrtshipError
from trtship.files import NotRegularError, copy_hashed, locked, open_regular, read_bounded, sha256_of
from trtship.spec import TensorSpec
from trtship.verify.locate_reproduction import RECORD, read_reproduction


def test_a_regular_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"data")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"data"
        assert sha256_of(tmp_path / name) == hashlib.sha256(b"data").hexdigest()


def test_a_fifo_a_device_and_a_folder_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    begun = time.monotonic()
    for path, kind in ((tmp_path / "fifo", "FIFO"), (Path("/dev/zero"), "device"), (tmp_path, "directory")):
        with pytest.raises(NotRegularError, match=kind), open_regular(path):
            pytest.fail("it was opened")
    assert time.monotonic() - begun < 2


def test_no_more_is_read_than_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    for most, found in ((4, b"01234"), (9, b"0123456789"), (100, b"0123456789")):
        with open_regular(tmp_path / "a") as file:
            assert read_bounded(file, most) == found


def test_what_is_copied_is_hashed(tmp_path: Path) -> None:
    data, target = os.urandom(3 * 2**20 + 17), BytesIO()
    assert copy_hashed(BytesIO(data), target) == hashlib.sha256(data).hexdigest()
    assert target.getvalue() == data


def test_a_lock_is_held_by_one_at_a_time_and_follows_the_folder(tmp_path: Path) -> None:
    """Who waits for a folder that is replaced meanwhile gets the lock of the new one."""
    folder, order = tmp_path / "a", []
    folder.mkdir()

    def second() -> None:
        with locked(folder):
            order.append((folder / "new").exists())

    thread = threading.Thread(target=second)
    with locked(folder):
        thread.start()
        thread.join(0.3)
        assert order == []
        folder.rename(tmp_path / "old")
        folder.mkdir()
        (folder / "new").touch()
    thread.join(10)
    assert order == [True]


def test_a_fifo_as_a_checkpoint_is_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "weights.safetensors")
    (tmp_path / "m.py").write_text("import torch\ndef f():\n    return torch.nn.Identity()\n")
    command = ["deploy", f"{tmp_path}/m.py:f", "--checkpoint", str(tmp_path / "weights.safetensors")]
    assert main([*command, "--input", "x=Bx3", "-o", str(tmp_path / "out")]) == 2
    assert "weights.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a file without end"])
def test_labels_arrays_and_reproductions_are_regular_files_of_a_bounded_size(tmp_path: Path, kind: str) -> None:
    def put(path: Path) -> Path:
        path.parent.mkdir(exist_ok=True)
        if kind == "a FIFO":
            os.mkfifo(path)
        elif kind == "a device":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as file:
                file.truncate(MAX_LABEL_BYTES + 1)
        return path

    with pytest.raises(SpecError, match="cannot read the labels"):
        read_labels(put(tmp_path / "labels.txt"))
    arrays = put(tmp_path / "arrays" / "x.npy").parent
    with pytest.raises(InputError, match="cannot read the arrays"):
        feeds_of_folder(arrays, (TensorSpec("x", "float32", ("B", 3)),), preprocess=None)
    record = put(tmp_path / "found" / RECORD)
    with pytest.raises(TrtshipError):
        read_reproduction(record.parent)
