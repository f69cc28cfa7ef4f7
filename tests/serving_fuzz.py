"""Mutated frames against the codec and a server: no crash, no hang, no growing memory, a sentence for each.

python tests/serving_fuzz.py 100000
"""

import random
from collections.abc import Callable

import msgpack
import numpy as np

from pi0_control.serving.codec import pack


def frames() -> list[bytes]:
    """Frames as clients send them, and odd ones."""
    images = {name: np.zeros((8, 8, 3), np.uint8) for name in ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")}
    observation = {"images": images, "state": np.zeros(7, np.float32), "prompt": "touch the red block"}
    prefix = {"actions": np.zeros((3, 7), np.float32), "delay": 1, "end": 3}
    return [
        pack(observation),
        pack({**observation, "prefix": prefix, "seed": 3, "prompt": np.array("touch the red block")}),
        pack({**observation, "state": [0.0] * 7, "prompt": b"touch the red block"}),
        pack({"t": np.float32(1.5), "nested": [[{"x": None}], [True, -1, 2**40, 1e300]]}),
        bytes(msgpack.packb({"time": msgpack.Timestamp(1, 2), "other": msgpack.ExtType(3, b"abc")})),
    ]


def _flip(frame: bytearray, rng: random.Random) -> None:
    frame[_spot(frame, rng)] ^= 1 << rng.randrange(8)


def _replace(frame: bytearray, rng: random.Random) -> None:
    frame[_spot(frame, rng)] = rng.randrange(256)


def _insert(frame: bytearray, rng: random.Random) -> None:
    at = _spot(frame, rng)
    frame[at:at] = rng.randbytes(rng.randint(1, 8))


def _delete(frame: bytearray, rng: random.Random) -> None:
    at = _spot(frame, rng)
    del frame[at : at + rng.randint(1, 8)]


def _repeat(frame: bytearray, rng: random.Random) -> None:
    at = _spot(frame, rng)
    frame[at:at] = frame[at : at + rng.randint(1, 64)]


def _cut(frame: bytearray, rng: random.Random) -> None:
    del frame[_spot(frame, rng) + 1 :]


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [_flip, _replace, _insert, _delete, _repeat, _cut]


def _spot(frame: bytearray, rng: random.Random) -> int:
    """Anywhere, though rarely inside the long data of an image."""
    structure = [at for at, byte in enumerate(frame) if byte]
    return rng.choice(structure) if structure and rng.random() < 0.9 else rng.randrange(len(frame))


def mutated(frame: bytes, rng: random.Random) -> bytes:
    """A frame with one to four things wrong."""
    result = bytearray(frame)
    for _ in range(rng.randint(1, 4)):
        if result:
            rng.choice(MUTATIONS)(result, rng)
    return bytes(result)
