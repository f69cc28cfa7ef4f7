import random
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from serving_fuzz import mutated

from pi0_control.errors import FrameError
from pi0_control.serving.codec import MAX_ITEMS, pack, unpack

SPEC_FRAME = bytes.fromhex(
    "84a7616374696f6e7384c40b5f5f6e6461727261795f5fc3c40464617461c410000000000000803f0000004000004040c4056474797065a33c"
    "6634c4057368617065920202a17483c40d5f5f6e7067656e657269635f5fc3c40464617461cb3ff8000000000000c4056474797065a33c6634"
    "ad706f6c6963795f74696d696e6781a8696e6665725f6d73cb3ff0000000000000a670726f6d7074a26869"
)
SPEC_MESSAGE = {
    "actions": np.array([[0, 1], [2, 3]], np.float32),
    "t": np.float32(1.5),
    "policy_timing": {"infer_ms": 1.0},
    "prompt": "hi",
}
DTYPES = hnp.boolean_dtypes() | hnp.integer_dtypes() | hnp.floating_dtypes(sizes=(16, 32, 64))
DTYPES |= hnp.unicode_string_dtypes(max_len=3) | hnp.byte_string_dtypes(max_len=3)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary() | ARRAYS
KEYS = st.text(max_size=3)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


def an_array(data: Any = b"\0" * 8, dtype: Any = "<f4", shape: Any = (2,)) -> bytes:
    return bytes(msgpack.packb({"x": {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}}))


def a_number(data: Any, dtype: Any) -> bytes:
    return bytes(msgpack.packb({"x": {b"__npgeneric__": True, b"data": data, b"dtype": dtype}}))


def assert_same(read: Any, sent: Any) -> None:
    if isinstance(sent, dict):
        assert read.keys() == sent.keys()
        for key, value in sent.items():
            assert_same(read[key], value)
    elif isinstance(sent, list):
        assert len(read) == len(sent)
        for one, other in zip(read, sent, strict=True):
            assert_same(one, other)
    elif isinstance(sent, np.ndarray):
        assert (read.dtype, read.shape, read.tobytes()) == (sent.dtype, sent.shape, sent.tobytes())
        assert not read.flags.writeable
    else:
        assert type(read) is type(sent)
        assert read == sent or read != read


def test_the_bytes_are_those_of_openpi() -> None:
    assert pack(SPEC_MESSAGE) == SPEC_FRAME
    assert_same(unpack(SPEC_FRAME), SPEC_MESSAGE)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
@settings(deadline=None)
def test_what_is_packed_comes_back(message: dict[str, Any]) -> None:
    assert_same(unpack(pack(message)), message)


@pytest.mark.parametrize(
    "value",
    [np.zeros(1, complex), np.array([None]), np.zeros(1, "V4"), np.zeros(1, "M8[s]"), object(), 2**70, "\ud800"],
)
def test_what_the_protocol_does_not_have_is_not_packed(value: Any) -> None:
    with pytest.raises(FrameError, match=r"expected|cannot be packed"):
        pack({"x": value})


@pytest.mark.parametrize(
    ("frame", "reason"),
    {
        "nothing": (b"", "not a message"),
        "cut off": (SPEC_FRAME[:-1], "not a message"),
        "more behind": (SPEC_FRAME + b"\0", "not a message"),
        "no map": (msgpack.packb([1]), "expected a map"),
        "an array alone": (msgpack.packb(msgpack.unpackb(an_array())["x"]), "expected a map"),
        "number as key": (b"\x81\x01\x01", "not a message"),
        "bytes as key": (msgpack.packb({b"x": 1}), "expected text"),
        "a key twice": (b"\x82\xa1x\x01\xa1x\x02", "twice"),
        "not UTF-8": (b"\x81\xa1x\xa1\xff", "not a message"),
        "extension": (msgpack.packb({"x": msgpack.ExtType(5, b"")}), "extension"),
        "timestamp": (msgpack.packb({"x": msgpack.Timestamp(1)}), "not a message"),
        "too short": (an_array(b"\0" * 7), "do not fit"),
        "too long": (an_array(b"\0" * 9), "do not fit"),
        "negative": (an_array(shape=(-1, -2)), "do not fit"),
        "huge": (an_array(b"", shape=(0, 2**62, 2**62)), "shape"),
        "deep": (an_array(b"\0" * 4, shape=(1,) * 100), "shape"),
        "not whole": (an_array(shape=(2.0,)), "do not fit"),
        "text as data": (an_array("\0" * 8), "do not fit"),
        "objects": (an_array(dtype="|O"), "dtype"),
        "records": (an_array(dtype="f4,f4"), "dtype"),
        "fields": (an_array(dtype=[["a", "<f4"]]), "dtype"),
        "empty text": (an_array(b"", dtype="<U0", shape=(10**9,)), "dtype"),
        "marker only": (msgpack.packb({"x": {b"__ndarray__": True}}), "expected text"),
        "out of range": (a_number(300, "|u1"), "do not fit"),
        "float as whole": (a_number(1.5, "<i4"), "do not fit"),
    }.values(),
)
def test_a_strange_frame_is_refused_with_its_reason(frame: bytes, reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        unpack(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x81\xa1x\xdd" + (MAX_ITEMS + 1).to_bytes(4, "big") + b"\xc0" * (MAX_ITEMS + 1),
        b"\x81\xa1x" + b"\xdc\x08\x00" * 1000,
        b"\x81\xa1x\xdc\x08\x00" + (b"\xdc\x08\x00" + b"\x80" * 2048) * 2048,
        b"\x81\xa1x" + b"\x91" * 100_000,
        b"\x81\xa1x\xdf\xff\xff\xff\xff" + b"\0" * 1000,
    ],
    ids=["long", "nested claims", "many empty maps", "deep", "huge claim"],
)
def test_a_frame_makes_no_more_than_it_weighs(frame: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(FrameError):
        unpack(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(frame) + 40e6


def test_a_mutated_frame_is_read_or_refused() -> None:
    rng = random.Random(0)
    refused = 0
    for _ in range(2000):
        try:
            unpack(mutated(rng))
        except FrameError:
            refused += 1
    assert 500 < refused < 1500
