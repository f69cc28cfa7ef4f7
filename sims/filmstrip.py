"""A filmstrip of one episode for documents: the scene and what the cameras see, at a few moments.

python -m sims.filmstrip docs/lift.png --task Lift --seed 100003
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tyro
from numpy.typing import NDArray

from sims.episode import Actor, run_episode
from sims.tabletop_env import TabletopEnv
from sims.video import write_text

MOMENTS = 5
SCENE_SHAPE = (270, 360)
CAPTION_PIXELS = 34
GAP_PIXELS = 2
Pictures = tuple[NDArray[np.uint8], Mapping[str, NDArray[np.uint8]]]


@dataclass(frozen=True)
class Episode:
    """The pictures of every control period (the scene, and the cameras by name) and what they show."""

    pictures: list[Pictures]
    prompt: str
    is_success: bool


def film(env: TabletopEnv, actor: Actor, seed: int) -> Episode:
    """Run one episode and keep a picture of every control period."""
    pictures: list[Pictures] = []
    result = run_episode(
        env, actor, seed, on_observation=lambda seen: pictures.append((env.render_camera("scene"), seen["images"]))
    )
    return Episode(pictures, result.prompt, result.is_success)


def filmstrip(episode: Episode) -> NDArray[np.uint8]:
    """One RGB picture: a column per moment, the scene above the cameras, under the instruction and the outcome."""
    chosen = np.linspace(0, len(episode.pictures) - 1, MOMENTS).round().astype(int)
    columns = [_column(*episode.pictures[index]) for index in chosen]
    strip = np.hstack(columns)
    caption = np.full((CAPTION_PIXELS, strip.shape[1], 3), 246, np.uint8)
    outcome = "success" if episode.is_success else "failure"
    write_text(caption, f'"{episode.prompt}"  ->  {outcome}', (10, 23), 0.6)
    return np.vstack([caption, strip])


def _column(scene: NDArray[np.uint8], cameras: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    height, width = SCENE_SHAPE
    side = width // len(cameras) - 2 * GAP_PIXELS
    views = [_framed(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)) for image in cameras.values()]
    return np.vstack(
        [_framed(cv2.resize(scene, (width - 2 * GAP_PIXELS, height), interpolation=cv2.INTER_AREA)), np.hstack(views)]
    )


def _framed(image: NDArray[Any]) -> NDArray[np.uint8]:
    gap = GAP_PIXELS
    return cv2.copyMakeBorder(image, gap, 0, gap, gap, cv2.BORDER_CONSTANT, value=(246, 246, 246)).astype(np.uint8)


def main(out: tyro.conf.Positional[Path], task: str = "Lift", seed: int = 100_000, policy: str = "mini") -> None:
    """Draw the filmstrip of one episode.

    Args:
        out: PNG to write.
        task: name of the task.
        seed: of the scene.
        policy: name or directory.
    """
    from pi0_control.control.agent import Pi0Agent

    with closing(TabletopEnv(task)) as env:
        episode = film(env, Pi0Agent.from_pretrained(policy), seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(out), cv2.cvtColor(filmstrip(episode), cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    tyro.cli(main)
