"""Controls: what a policy is deprived of to see whether it uses it, its instruction or its cameras."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pi0_control.errors import ConfigError
from pi0_control.policy import Pi0Policy, PolicyTransforms
from pi0_control.types import Observation
from sims.episode import ORIGINAL, SWAPPED
from sims.tabletop_env import TabletopEnv
from sims.tasks import Goal

ALL_CAMERAS = "all"
_CONTROL_STREAM = 1  # what a control draws from an episode's seed, apart from the scene


def instruct(env: TabletopEnv, instruction: str, seed: int) -> tuple[Goal | None, str | None]:
    """The goal to judge in the scene of a seed and the words to show, None where they stay the scene's own.

    ``swapped`` asks for another block in the same scene, in the same words but for the colours. ``shuffled`` keeps the
    goal and shows the words of another one, drawn independently of it, so that words obeyed give chance.
    """
    if instruction == ORIGINAL:
        return None, None
    env.reset(seed=seed)
    assert env.goal is not None
    rng = np.random.default_rng((seed, _CONTROL_STREAM))
    if instruction == SWAPPED:
        goal = swapped(env.goal, env.world.blocks, rng)
        return goal, goal.prompt
    wordings = env.task.unseen_wordings if "wording" in env.aspects else None
    return env.goal, env.task.sample_goal(rng, env.world.blocks, wordings).prompt


def swapped(goal: Goal, blocks: Sequence[str], rng: np.random.Generator) -> Goal:
    """The goal with another block in place of its block; where the two are named together, they trade places."""
    other = str(rng.choice([block for block in blocks if block != goal.block]))
    trade = {goal.block: other, other: goal.block}
    prompt = re.sub(r"\b(" + "|".join(trade) + r")\b", lambda word: trade[word[0]], goal.prompt)
    return Goal(other, trade.get(goal.onto, goal.onto) if goal.onto else None, prompt)


def deprive(observation: Mapping[str, Any], prompt: str | None, masked_cameras: Sequence[str]) -> dict[str, Any]:
    """The observation with other words, unless ``prompt`` is None, and without these cameras."""
    seen = {name: image for name, image in observation["images"].items() if name not in masked_cameras}
    return {**observation, "images": seen, **({} if prompt is None else {"prompt": prompt})}


class _MaskedTransforms(PolicyTransforms):
    """Takes observations that lack some cameras; their slots are masked, as those of optional cameras are."""

    masked_cameras: tuple[str, ...] = ()

    def check(self, observation: Observation) -> None:
        black = dict.fromkeys(self.masked_cameras, np.zeros((1, 1, 3), np.uint8))
        super().check(replace(observation, images={**black, **observation.images}))


def without_cameras(policy: Pi0Policy, cameras: Sequence[str]) -> Pi0Policy:
    """The same policy, sharing its weights, that accepts observations without these cameras."""
    transforms = _MaskedTransforms(policy.config, policy.transforms.norm_stats, policy.transforms.tokenizer)
    transforms.masked_cameras = tuple(cameras)
    masked = copy.copy(policy)
    masked.transforms = transforms
    return masked


def find_cameras(names: Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    """The cameras of these names in the robot's order; every one for :data:`ALL_CAMERAS`.

    Raises:
        ConfigError: there is no such camera.
    """
    for name in names:
        if name not in (*available, ALL_CAMERAS):
            raise ConfigError(f"No camera {name!r}; the cameras are {', '.join(available)}, or {ALL_CAMERAS}.")
    return tuple(camera for camera in available if camera in names or ALL_CAMERAS in names)
