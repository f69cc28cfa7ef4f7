"""Mutated files of checkpoints against the loader: no crash, no hang, no growing memory, a sentence for each.

python tests/checkpoint_fuzz.py 10000 [SEED]
"""

import copy
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_files import GOLDEN
from memory import memory_mb
from policy_parts import ARM6, TINY05, make_policy, stats
from public_policies import PI0, PI05, lerobot_policy, openpi_policy

from pi0_control.errors import Pi0Error
from pi0_control.model.checkpoints import open_checkpoint
from pi0_control.model.pi0 import Pi0
from pi0_control.policy import Pi0Policy, PolicyConfig

LIMIT_S = 60.0  # for one file, on a busy machine
SETTINGS = {"robot": "arm6", "action_space": "joint_delta", "model": {"action_horizon": 6}}
Load = Callable[[Path], object]


def load_weights_only(directory: Path) -> None:
    checkpoint = open_checkpoint(directory)
    checkpoint.load(Pi0.empty(checkpoint.config))


def write_checkpoints(root: Path) -> dict[Path, Load]:
    """A small whole checkpoint of each format and how it is loaded."""
    make_policy(PolicyConfig.for_robot(ARM6, TINY05)).save(root / "own")
    openpi_policy(root / "openpi", PI0, {"arm6": stats()})
    (root / "openpi" / "policy.json").write_text(json.dumps(SETTINGS))
    (root / "openpi" / "config.json").write_text(json.dumps({"action_dim": 16, "precision": "float32"}))
    lerobot_policy(root / "lerobot", PI05, stats(), tuple(ARM6.cameras))
    shutil.copytree(GOLDEN / "orbax_pi0_tiny", root / "orbax")
    loads: dict[Path, Load] = {root / "own": Pi0Policy.from_pretrained, root / "openpi": Pi0Policy.from_pretrained}
    loads[root / "lerobot"] = lambda directory: Pi0Policy.from_pretrained(directory, robot=ARM6)
    return {**loads, root / "orbax": load_weights_only}


ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    3,
    2**31,
    10**30,
    0.5,
    float("nan"),
    1e308,
    "",
    "x" * 300,
    "../..",
    "BF16",
    "I32",
]
ODD += [[], {}, [[]], [0, 0], [1, 2, 3], [10**9, 10**9], {"": 0}, {"mean": [1]}, ["π"]]


def tampered(value: Any, rng: random.Random) -> Any:
    """A JSON value in which some entries are gone, hold something else or are named otherwise."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        place = value
        while isinstance(place, dict | list) and place:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.85:
                place = place[key]
                continue
            what = rng.random()
            if what < 0.2:
                del place[key]
            elif what < 0.3 and isinstance(place, dict):
                place[rng.choice(["extra", "type", "model.x", key + "x"])] = place.pop(key)
            else:
                place[key] = copy.deepcopy(rng.choice(ODD))
            break
    return value


def with_other_json(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(tampered(json.loads(content), rng)).encode()


def with_other_header(content: bytes, rng: random.Random) -> bytes:
    end = 8 + int.from_bytes(content[:8], "little")
    header = with_other_json(content[8:end], rng)
    return len(header).to_bytes(8, "little") + header + content[end:]


def with_other_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes replaced, put in, taken out or repeated, or the end cut off; mostly near the beginning."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(changed), rng.choice([64, 2000, len(changed)])) + 1)
        end = at + rng.randint(1, 8)
        flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in changed[at : at + 1])
        place, pieces = rng.choice([at, at + 1, end]), [flipped, b"", rng.randbytes(end - at), changed[at : at + 64]]
        changed[at:place] = rng.choice(pieces)
        if rng.random() < 0.1:
            del changed[at:]
    return bytes(changed)


def mutated(path: Path, content: bytes, rng: random.Random) -> bytes | None:
    """Another content of a file; None where the file is gone."""
    if rng.random() < 0.01:
        return None
    is_structured = rng.random() < 0.6
    if path.suffix == ".safetensors" and is_structured:
        return with_other_header(content, rng)
    if (path.suffix == ".json" or path.name in ("_METADATA", ".zarray")) and is_structured:
        return with_other_json(content, rng)
    return with_other_bytes(content, rng)


def outcome(load: Load, directory: Path) -> str:
    """What became of it; anything but a load or one sentence of ours is raised."""
    try:
        with np.errstate(all="ignore"):
            load(directory)
    except Pi0Error as error:
        message = str(error)
        assert message, "an empty message"
        assert len(message.splitlines()) == 1, f"not one sentence: {message}"
        return type(error).__name__
    return "loaded"


def attack(count: int, seed: int = 0) -> None:
    """Mutate, load, restore, ``count`` times; raises at the first that ends otherwise than it may."""
    rng, seen, slowest_s, before_mb = random.Random(seed), Counter[str](), 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        loads = write_checkpoints(Path(folder))
        for directory, load in loads.items():
            assert outcome(load, directory) == "loaded", directory
        for number in range(count):
            if number == count // 10:
                before_mb = memory_mb()  # by now everything has been used once
            directory = rng.choice(list(loads))
            path = rng.choice(sorted(each for each in directory.rglob("*") if each.is_file()))
            content = path.read_bytes()
            other = mutated(path, content, rng)
            path.unlink() if other is None else path.write_bytes(other)
            started_s = time.perf_counter()
            try:
                seen[f"{directory.name}: {outcome(loads[directory], directory)}"] += 1
            except BaseException as error:
                error.add_note(f"number {number} of seed {seed}: {path.relative_to(folder)}")
                raise
            took_s = time.perf_counter() - started_s
            assert took_s < LIMIT_S, f"number {number} of seed {seed} took {took_s:.1f} s"
            slowest_s = max(slowest_s, took_s)
            path.write_bytes(content)
    print(f"{count} files, seed {seed}: {dict(sorted(seen.items()))}")
    print(f"slowest {slowest_s:.2f} s, memory {before_mb:.0f} MB after a tenth and {memory_mb():.0f} MB at the end")


if __name__ == "__main__":
    attack(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
