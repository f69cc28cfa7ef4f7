"""Frames of openpi's protocol: a map in msgpack in which NumPy arrays are maps with bytes keys. No I/O, and no pickle.

Reading is strict: what a frame may hold is listed here, and a frame of n bytes makes objects of some n bytes plus a
constant, whatever it claims to hold.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from pi0_control.errors import FrameError

MAX_ITEMS = 4096  # entries of all lists and maps of a frame together; an array is one entry
ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"
ARRAY_KEYS, SCALAR_KEYS = {ARRAY, b"data", b"dtype", b"shape"}, {SCALAR, b"data", b"dtype"}
DTYPE = re.compile(r"[<>|]?(b1|[iu][1248]|f[248]|[US][1-9][0-9]{0,8})", re.ASCII)
PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "b": (bool,),
    "i": (int,),
    "u": (int,),
    "f": (int, float),
    "U": (str,),
    "S": (bytes,),
}


def pack(message: Mapping[str, Any]) -> bytes:
    """The frame of a message: plain values, NumPy arrays and NumPy numbers, in lists and maps.

    Raises:
        FrameError: something else in it.
    """
    try:
        return bytes(msgpack.packb(message, default=_pack_numpy))
    except (TypeError, ValueError, OverflowError) as error:
        raise FrameError(f"The message cannot be packed: {error}.") from error


def unpack(frame: bytes) -> dict[str, Any]:
    """The message of a frame; arrays in it are read-only.

    Raises:
        FrameError: not msgpack, not a map with text keys, or something in it that this protocol does not have.
    """
    items = 0

    def count(number: int) -> None:
        nonlocal items
        items += number + 1
        if items > MAX_ITEMS:
            raise FrameError(f"The frame has more than {MAX_ITEMS} entries; expected arrays rather than lists.")

    def read_list(values: list[Any]) -> list[Any]:
        count(len(values))
        return values

    def read_map(pairs: list[tuple[Any, Any]]) -> Any:
        count(len(pairs))
        return _unpack_map(pairs)

    message = _parse(frame, list_hook=read_list, object_pairs_hook=read_map)
    if not isinstance(message, dict):
        raise FrameError(f"The frame holds {type(message).__name__}; expected a map.")
    return message


def _parse(frame: bytes, **hooks: Callable[..., Any]) -> Any:
    try:
        return msgpack.unpackb(
            frame, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, max_ext_len=0, ext_hook=_refuse_extension, **hooks
        )
    except (msgpack.UnpackException, ValueError) as error:
        raise FrameError(f"The frame is not a message in msgpack: {error or type(error).__name__}.") from error


def _refuse_extension(code: int, data: bytes) -> Any:
    raise FrameError(f"The frame has an extension of type {code}; expected plain values and arrays.")


def _pack_numpy(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise FrameError(f"The message holds {type(value).__name__}; expected plain values and NumPy arrays.")
    _dtype(value.dtype.str)
    if isinstance(value, np.ndarray):
        return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}


def _unpack_map(pairs: list[tuple[Any, Any]]) -> Any:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise FrameError("A map of the frame has a key twice.")
    if values.keys() == ARRAY_KEYS:
        return _unpack_array(values)
    if values.keys() == SCALAR_KEYS:
        return _unpack_scalar(values)
    if not all(isinstance(key, str) for key in values):
        raise FrameError(f"A map of the frame has keys {list(values)[:4]}; expected text, or those of an array.")
    return values


def _unpack_array(values: dict[bytes, Any]) -> Any:
    dtype, data, shape = _dtype(values[b"dtype"]), values[b"data"], values[b"shape"]
    is_shape = isinstance(shape, list) and all(type(length) is int and length >= 0 for length in shape)
    if not isinstance(data, bytes) or not is_shape or math.prod(shape) * dtype.itemsize != len(data):
        size = len(data) if isinstance(data, bytes) else type(data).__name__
        raise FrameError(f"An array has data of size {size}, shape {shape!r:.80} and dtype {dtype}; they do not fit.")
    try:
        return np.ndarray(shape, dtype, data)
    except ValueError as error:
        raise FrameError(f"An array has shape {shape!r:.80}: {error}.") from error


def _unpack_scalar(values: dict[bytes, Any]) -> Any:
    dtype, data = _dtype(values[b"dtype"]), values[b"data"]
    try:
        if isinstance(data, PYTHON_TYPES[dtype.kind]):
            with np.errstate(over="ignore"):
                return dtype.type(data)
    except OverflowError:
        pass
    raise FrameError(f"A number is {data!r:.80} with dtype {dtype}; they do not fit.")


def _dtype(text: Any) -> np.dtype[Any]:
    if not isinstance(text, str) or not DTYPE.fullmatch(text):
        raise FrameError(f"An array has dtype {text!r:.80}; expected booleans, numbers or text.")
    return np.dtype(text)
