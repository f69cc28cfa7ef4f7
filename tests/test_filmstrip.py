from contextlib import closing

import numpy as np

from sims.episode import ExpertActor
from sims.filmstrip import CAPTION_PIXELS, MOMENTS, SCENE_SHAPE, film, filmstrip
from sims.tabletop_env import TabletopEnv


def test_filmstrip_shows_the_episode_from_start_to_end() -> None:
    with closing(TabletopEnv("Reach")) as env:
        env.task = type(env.task)(**{**vars(env.task), "max_episode_steps": 3})
        episode = film(env, ExpertActor(env), seed=0)
    picture = filmstrip(episode)
    assert not episode.is_success
    assert len(episode.pictures) == 4
    height = CAPTION_PIXELS + SCENE_SHAPE[0] + SCENE_SHAPE[1] // 3
    assert picture.shape == (height, MOMENTS * SCENE_SHAPE[1], 3)
    assert np.ptp(picture[:CAPTION_PIXELS]) > 100
