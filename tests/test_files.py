from pathlib import Path

import pytest

from pi0_control import files
from pi0_control.errors import DatasetError


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.txt"
    files.write_text(path, "π0\n")

    def torn(partial: Path) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_file(path, torn)
    assert path.read_text(encoding="utf-8") == "π0\n"
    files.write_text(path, "π0.5\n")
    assert path.read_text(encoding="utf-8") == "π0.5\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    first, second = (files.lock_of(tmp_path / "folder" / "lock") for _ in range(2))
    files.take(first, DatasetError("busy"))
    with pytest.raises(DatasetError, match="busy"):
        files.take(second, DatasetError("busy"))
    first.release()
    files.take(second, DatasetError("busy"))
    second.release()
