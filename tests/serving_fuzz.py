"""Mutated frames against the codec and a server: no crash, no hang, no growing memory, a sentence for each.

python tests/serving_fuzz.py 100000
"""

import copy
import logging
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgpack
import numpy as np
from memory import memory_mb
from serving_parts import LIMIT_S, observe, serving
from tiny_policy import tiny_policy
from websockets.sync.client import ClientConnection, connect

from pi0_control.serving import RemotePolicy
from pi0_control.serving.codec import pack


def messages() -> list[dict[str, Any]]:
    """What clients send, and something odd."""
    images = {name: np.zeros((8, 8, 3), np.uint8) for name in ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")}
    observation = {"images": images, "state": np.zeros(7, np.float32), "prompt": "touch the red block"}
    prefix = {"actions": np.zeros((3, 7), np.float32), "delay": 1, "end": 3}
    noise = np.zeros((6, 7), np.float32)
    return [
        observation,
        {**observation, "prefix": prefix, "seed": 3, "noise": noise, "prompt": np.array("touch the red block")},
        {**observation, "state": [0.0] * 7, "prompt": b"touch the red block"},
        {**observation, "t": np.float32(1.5), "nested": [[{"x": None}], [True, -1, 2**40, 1e300]]},
    ]


def frames() -> list[bytes]:
    """Their frames, and one of another protocol."""
    other = {"time": msgpack.Timestamp(1, 2), "other": msgpack.ExtType(3, b"abc")}
    return [*map(pack, messages()), bytes(msgpack.packb(other))]


ODD: list[Any] = [
    None,
    True,
    -1,
    2**63,
    0.5,
    math.nan,
    math.inf,
    "",
    "x" * 300,
    "\0",
    b"",
    b"\xff\xfe",
    [],
    {},
    [[]],
    {"": 0},
]
ODD += [
    np.zeros(shape, dtype)
    for shape in ((), (0,), (7,), (7, 1), (6, 7), (8, 8), (8, 8, 4), (3, 0, 3))
    for dtype in "?Bbdef"
]
ODD += [np.full(7, value, np.float32) for value in (np.nan, np.inf, -3e38)]
ODD += [np.float64(1e300), np.uint8(3), np.array("text"), np.array([b"text"]), np.zeros((40, 1, 3), np.uint8)]


def tampered(message: dict[str, Any], rng: random.Random) -> bytes:
    """The frame of a message in which some entries are gone or hold something else."""
    message = copy.deepcopy(message)
    for _ in range(rng.randint(1, 2)):
        place = message
        while isinstance(inner := place[key := rng.choice(list(place))], dict) and inner and rng.random() < 0.8:
            place = inner
        if rng.random() < 0.15:
            del place[key]
        else:
            place[key] = rng.choice(ODD)
        if not message:
            break
    return pack(message)


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


def mutated(rng: random.Random) -> bytes:
    """A frame with one or two things wrong, in its bytes or in what it says."""
    if rng.random() < 0.5:
        return tampered(rng.choice(messages()), rng)
    result = bytearray(rng.choice(frames()))
    for _ in range(rng.randint(1, 2)):
        if result:
            rng.choice(MUTATIONS)(result, rng)
    return bytes(result)


def attack(count: int, seed: int) -> None:
    """Send so many mutated frames to a server, and print what became of them."""
    rng, heard, slowest_s, before_mb = random.Random(seed), Counter[str](), 0.0, 0.0
    with serving(tiny_policy()) as served, ExitStack() as stack:
        client: ClientConnection | None = None
        for number in range(count):
            if number == count // 10:
                before_mb = memory_mb()  # by now everything has been used once
            frame, started_s = mutated(rng), time.perf_counter()
            if client is None:
                client = stack.enter_context(connect(served.url, compression=None, max_size=None, proxy=None))
                client.recv(LIMIT_S)
            client.send(frame)
            reply = client.recv(LIMIT_S)
            slowest_s = max(slowest_s, time.perf_counter() - started_s)
            heard["answered" if isinstance(reply, bytes) else reply.partition(":")[0]] += 1
            if isinstance(reply, str):
                stack.close()  # as the server does
                client = None
        with RemotePolicy(served.url, deadline_s=LIMIT_S) as policy:
            assert policy.infer(observe()).horizon == 6
        outcomes = served.server.metrics.requests
    print(f"{count} frames, seed {seed}: {dict(heard.most_common())}; the server counts {outcomes}")
    print(f"slowest {slowest_s:.2f} s, memory {before_mb:.0f} MB after a tenth and {memory_mb():.0f} MB at the end")


if __name__ == "__main__":
    logging.disable()
    attack(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
