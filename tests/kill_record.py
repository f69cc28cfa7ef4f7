"""Kills a recording at random moments, again and again, and checks each time what is left of it.

python tests/kill_record.py outputs/kills                 a recorder of made-up frames
python tests/kill_record.py outputs/kills --task Reach    pi0 record; a task, or scenes

Nothing that could be read before a kill may be lost or changed by it, every video holds its episode's frames, and the
next run goes on.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from recordings import ROBOT

from pi0_control import files
from pi0_control.errors import DatasetError
from pi0_control.train.dataset import Dataset
from pi0_control.train.video import read_video
from pi0_control.train.writer import DatasetWriter

SIZE = (64, 64)
POLL_S = 0.01
Snapshot = list[tuple[bytes, bytes]]


def record_made_up(root: Path, episodes: int) -> None:
    """Record episodes that are each a function of their number."""
    with DatasetWriter(root, ROBOT, image_size=SIZE) as recorder:
        while recorder.num_episodes < episodes:
            rng = np.random.default_rng(recorder.num_episodes)
            for _ in range(rng.integers(2, 40)):
                images = {camera: rng.integers(256, size=(*SIZE, 3), dtype=np.uint8) for camera in ROBOT.cameras}
                recorder.add_frame(images, rng.normal(size=2), rng.normal(size=2))
            recorder.save_episode(f"task {recorder.num_episodes % 3}")


def command_for(root: Path, episodes: int, task: str | None) -> list[str]:
    """What to run, and kill."""
    if task is None:
        return [sys.executable, __file__, str(root), "--episodes", str(episodes), "--record"]
    options = ["--task", task, "--episodes", str(episodes), "--out", str(root)]
    return [sys.executable, "-m", "pi0_control.cli", "record", *options]


def run_and_kill(command: Sequence[str], root: Path, delay_s: float) -> bool:
    """Kill the command ``delay_s`` after it began to record; whether it ended before."""
    left_behind = _partials(root)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_s = POLL_S
        while True:
            try:
                if process.wait(wait_s) != 0:
                    raise RuntimeError(f"{' '.join(command)} failed by itself.")
                return True
            except subprocess.TimeoutExpired:
                if wait_s == delay_s:
                    process.kill()
                    return False
                if _partials(root) - left_behind:
                    wait_s = delay_s


def _partials(root: Path) -> set[tuple[Path, int]]:
    """Files being written, each with its number on the disk."""
    found = set()
    for path in root.glob(f"videos/*/*{files.PARTIAL}"):
        try:
            found.add((path, path.stat().st_ino))
        except FileNotFoundError:
            continue  # finished just now
    return found


def check(root: Path, before: Snapshot) -> Snapshot:
    """States and actions of every episode that can be read; an error when anything of ``before`` is not there."""
    try:
        dataset = Dataset.open(root)
    except DatasetError as error:
        if before or not str(error).startswith(("No episode", "No file")):
            raise
        return []  # it had hardly begun
    now = []
    for episode in dataset.episodes:
        frames = slice(episode.start, episode.start + episode.length)
        now.append((dataset.states[frames].tobytes(), dataset.actions[frames].tobytes()))
    assert now[: len(before)] == before
    for episode in dataset.episodes[len(before) :]:
        for span in episode.images.values():
            assert sum(1 for _ in read_video(span.path)) == episode.length, span.path
    return now


def kill_again_and_again(
    folder: Path, episodes: int, kills: int, seed: int, longest_s: float, task: str | None
) -> tuple[list[int], bool]:
    """Kill a recording ``kills`` times and let it end.

    Returns:
        how many episodes could be read after each kill, and whether the result is that of a recording never killed.
    """
    rng, root, snapshot = np.random.default_rng(seed), folder / "killed", Snapshot()
    counts: list[int] = []
    command = command_for(root, episodes, task)
    while len(counts) < kills:
        if run_and_kill(command, root, rng.uniform(0, longest_s)):
            raise RuntimeError(f"All {episodes} episodes were there after {len(counts)} kills; ask for more episodes.")
        snapshot = check(root, snapshot)
        counts.append(len(snapshot))
        print(f"kill {len(counts)}: {len(snapshot)} episodes can be read", flush=True)
    subprocess.run(command, check=True, capture_output=True)
    snapshot = check(root, snapshot)
    assert len(snapshot) == episodes
    assert not list(root.rglob(f"*{files.PARTIAL}"))
    subprocess.run(command_for(folder / "whole", episodes, task), check=True, capture_output=True)
    return counts, snapshot == check(folder / "whole", [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest-s", type=float, default=2.0, help="after the first frame")
    parser.add_argument("--record", action="store_true", help="be the recorder of made-up frames")
    args = parser.parse_args()
    if args.record:
        record_made_up(args.folder, args.episodes)
        return
    counts, is_same = kill_again_and_again(args.folder, args.episodes, args.kills, args.seed, args.longest_s, args.task)
    print(f"{len(counts)} kills, {counts[-1]} episodes after the last, {args.episodes} in the end.")
    print(f"States and actions are {'those' if is_same else 'not those'} of a recording that was never killed.")


if __name__ == "__main__":
    main()
