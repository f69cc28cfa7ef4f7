"""Files that are there whole or not at all, and folders that one process has at a time."""

import json
import os
import re
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pi0_control.errors import CheckpointError, Pi0Error

PARTIAL = ".partial"  # suffix of a file that is not finished


def publish(partial: Path, path: Path) -> None:
    """Give a finished file its name such that a crash leaves either all of it or nothing under that name."""
    _flush_to_disk(partial)
    os.replace(partial, path)
    _flush_to_disk(path.parent)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a partial file beside ``path``, then publish it as ``path``; if it fails, nothing is left.

    Whoever may read new files may read this one: safetensors, for one, makes them for their owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    partial.touch()
    mode = partial.stat().st_mode
    try:
        write(partial)
        partial.chmod(mode)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    publish(partial, path)


def write_numbered(folder: Path, stem: str, suffix: str, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a partial file, then publish it as ``stem``, the next number and ``suffix``.

    No file is ever replaced, however many processes write into the folder.

    Returns:
        Its path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbered = re.compile(rf"{re.escape(stem)}(\d+){re.escape(suffix)}({re.escape(PARTIAL)})?")
    taken = [int(match[1]) for file in folder.iterdir() if (match := numbered.fullmatch(file.name))]
    paths = (folder / f"{stem}{number:06d}{suffix}" for number in count(max(taken, default=-1) + 1))
    path = next(path for path in paths if _reserve(path))
    write_file(path, write)
    return path


def _reserve(path: Path) -> bool:
    """Whether nobody has this name; then the partial file, now there, keeps it from others."""
    partial = _partial(path)
    try:
        partial.touch(exist_ok=False)
    except FileExistsError:
        return False
    if path.exists():  # published since the folder was read
        partial.unlink()
        return False
    return True


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a partial folder beside ``path``, then publish it as ``path``, which must not exist yet.

    What an earlier attempt left behind is thrown away, and so is what a failing one has written. Its files may be read
    by whoever may read the folder.
    """
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        for each in partial.rglob("*"):
            if each.is_file():
                each.chmod(partial.stat().st_mode & 0o666)
            _flush_to_disk(each)
        publish(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """The value in a JSON file of a checkpoint.

    Raises:
        CheckpointError: no such file, or it is not JSON in UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {path}.") from error
    except RecursionError as error:
        raise CheckpointError(f"{path} is not valid JSON: it is nested too deep.") from error
    except ValueError as error:  # also what is not UTF-8, and numbers of thousands of digits
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error


def lock_of(path: Path) -> FileLock:
    """A lock on a file, not yet taken; a process that dies releases it."""
    return FileLock(path, blocking=False)


def take(lock: FileLock, busy: Pi0Error) -> None:
    """Take a lock, making its folder; raise ``busy`` where another process has it."""
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise busy from error
