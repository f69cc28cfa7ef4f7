from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pi0_control import files
from pi0_control.errors import CheckpointError, DatasetError


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.txt"
    files.write_text(path, "π0\n")

    def torn(partial: Path) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_file(path, torn)
    assert path.read_text(encoding="utf-8") == "π0\n"
    assert list(path.parent.iterdir()) == [path]
    files.write_text(path, "π0.5\n")
    assert path.read_text(encoding="utf-8") == "π0.5\n"
    assert list(path.parent.iterdir()) == [path]


def test_weights_may_be_read_by_whoever_may_read_new_files(tmp_path: Path) -> None:
    def save(path: Path) -> None:
        save_file({"weight": torch.ones(1)}, path)

    (tmp_path / "usual").touch()
    files.write_file(tmp_path / "weights", save)
    files.write_folder(tmp_path / "folder", lambda partial: save(partial / "weights"))
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "usual").stat().st_mode}


def test_numbered_files_replace_nothing_whoever_else_writes_there(tmp_path: Path) -> None:
    def write(number: int) -> Path:
        return files.write_numbered(tmp_path, "take_", ".txt", lambda partial: partial.write_text(str(number)))

    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(write, range(40)))
    assert [int(path.read_text()) for path in paths] == [*range(40)]
    assert {*tmp_path.iterdir()} == {*paths}


def test_numbered_files_take_the_next_number_that_nobody_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(partial: Path) -> None:
        inner = files.write_numbered(tmp_path, "take_", ".txt", lambda other: other.write_text("inner"))
        assert inner.name == "take_000008.txt"
        partial.write_text("outer")

    for name in ("take_000003.txt", "take_000006.txt.partial", "take_best.txt", "take_9.png", "a_take_000011.txt"):
        (tmp_path / name).touch()
    assert files.write_numbered(tmp_path, "take_", ".txt", write).name == "take_000007.txt"
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(()))  # as it was read before any other wrote
    names = [files.write_numbered(tmp_path, "take_", ".txt", Path.touch).name for _ in range(5)]
    assert names == [f"take_{number:06d}.txt" for number in (0, 1, 2, 4, 5)]
    assert files.write_numbered(tmp_path, "take_", ".txt", Path.touch).name == "take_000009.txt"
    assert (tmp_path / "take_000007.txt").read_text() == "outer"


def test_a_number_whose_file_cannot_be_written_is_free_again(tmp_path: Path) -> None:
    def torn(partial: Path) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_numbered(tmp_path, "take_", ".txt", torn)
    assert list(tmp_path.iterdir()) == []
    assert files.write_numbered(tmp_path, "take_", ".txt", Path.touch).name == "take_000000.txt"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "above" / "folder"

    def write(partial: Path) -> None:
        assert list(partial.iterdir()) == []
        (partial / "inner").mkdir()
        (partial / "inner" / "file.txt").write_text("whole")

    def torn(partial: Path) -> None:
        write(partial)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_folder(path, torn)
    assert list(path.parent.iterdir()) == []
    (tmp_path / "above" / "folder.partial" / "of an attempt that was killed").mkdir(parents=True)
    files.write_folder(path, write)
    assert (path / "inner" / "file.txt").read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_what_is_not_json_is_refused_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(CheckpointError, match=r"no file .*file\.json"):
        files.read_json(path)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"file\.json is not valid JSON"):
        files.read_json(path)
    path.write_text('{"π": [0]}', encoding="utf-8")
    assert files.read_json(path) == {"π": [0]}


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    first, second = (files.lock_of(tmp_path / "folder" / "lock") for _ in range(2))
    files.take(first, DatasetError("busy"))
    with pytest.raises(DatasetError, match="busy"):
        files.take(second, DatasetError("busy"))
    first.release()
    files.take(second, DatasetError("busy"))
    second.release()
