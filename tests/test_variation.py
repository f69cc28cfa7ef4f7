import mujoco
import numpy as np
import pytest

from pi0_control.errors import ConfigError
from pi0_control.robot import RobotSpec
from sims.tabletop_env import TabletopEnv
from sims.variation import ALL, ASPECTS, BLOCK_HALF_RANGE_M, NONE, SUITES, Variation, aspects_of, draw_aspects
from sims.world import TabletopWorld

SIZES = {"geom_size", "geom_rbound", "geom_aabb", "bvh_aabb", "body_inertia"}


@pytest.fixture(scope="module")
def world() -> TabletopWorld:
    return TabletopWorld(RobotSpec.from_yaml("arm6"))


def snapshot(world: TabletopWorld) -> dict[str, np.ndarray]:
    looks = {name: getattr(world.model, name).copy() for name in Variation._VARIED}
    headlight = world.model.vis.headlight
    return looks | {"headlight": np.r_[headlight.ambient, headlight.diffuse], "mocap": world.data.mocap_pos.copy()}


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("aspect", "expected"),
    [
        ("camera", {"cam_pos", "cam_quat", "cam_fovy"}),
        ("light", {"light_dir", "light_diffuse", "headlight"}),
        ("colour", {"mat_rgba", "mat_texid", "mat_texrepeat", "geom_rgba"}),
        ("size", SIZES),
        ("distractors", {*SIZES, "geom_rgba", "geom_type", "mocap"}),
        ("wording", set()),
        ("start", set()),
    ],
)
def test_each_aspect_changes_what_it_says_and_reset_brings_it_back(world, aspect, expected) -> None:
    world.reset(np.random.default_rng(0))
    plain, seen = snapshot(world), set()
    for seed in range(4):
        world.reset(np.random.default_rng(seed))
        assert changed(plain, snapshot(world)) == set()
        world.vary(frozenset({aspect}), np.random.default_rng(seed))
        seen |= changed(plain, snapshot(world))
    assert seen == expected


def test_nothing_varies_without_being_asked(world) -> None:
    world.reset(np.random.default_rng(1))
    before, rng = world.data.qpos.copy(), np.random.default_rng(7)
    world.vary(aspects_of(NONE), rng)
    assert np.array_equal(world.data.qpos, before)
    assert rng.random() == np.random.default_rng(7).random()


@pytest.mark.parametrize("suite", SUITES)
def test_a_seed_lays_the_same_blocks_in_every_suite(suite) -> None:
    env = TabletopEnv("Stack", perturb=suite)
    plain = TabletopEnv("Stack")
    env.observe = plain.observe = dict  # nothing needs to be drawn here
    for seed in range(3):
        env.reset(seed=seed)
        plain.reset(seed=seed)
        places = [[e.world.block_position(b)[:2] for b in e.world.blocks] for e in (env, plain)]
        np.testing.assert_allclose(*places, atol=1e-9)
        assert env.goal is not None
        assert plain.goal is not None
        assert (env.goal.block, env.goal.onto) == (plain.goal.block, plain.goal.onto)
        is_unseen = env.goal.prompt != plain.goal.prompt
        assert is_unseen == ("wording" in env.aspects)


def test_blocks_of_another_size_rest_on_the_table(world) -> None:
    world.reset(np.random.default_rng(3))
    world.vary(frozenset({"size"}), np.random.default_rng(3))
    halves = [world.block_half(block) for block in world.blocks]
    assert len(set(halves)) == 3
    assert all(BLOCK_HALF_RANGE_M[0] <= half <= BLOCK_HALF_RANGE_M[1] for half in halves)
    for block, half in zip(world.blocks, halves, strict=True):
        body = world.model.body(block)
        np.testing.assert_allclose(body.inertia, np.full(3, body.mass[0] * (2 * half) ** 2 / 6))
    for _ in range(5):
        world.drive(world.state)
    np.testing.assert_allclose([world.block_position(block)[2] for block in world.blocks], halves, atol=1e-3)


def test_distractors_keep_their_distance(world) -> None:
    for seed in range(20):
        world.reset(np.random.default_rng(seed))
        world.vary(frozenset({"distractors"}), np.random.default_rng(seed))
        laid = [place for place in world.data.mocap_pos if place[2] > 0]
        assert laid
        for place in laid:
            gaps = [np.linalg.norm(place[:2] - world.block_position(block)[:2]) for block in world.blocks]
            assert min(gaps) > 0.09


def test_images_show_the_variation() -> None:
    plain, varied = TabletopEnv("Reach"), TabletopEnv("Reach", perturb=ALL)
    images = [env.reset(seed=5)[0]["images"]["base_0_rgb"].astype(int) for env in (plain, varied)]
    assert np.abs(images[0] - images[1]).mean() > 5
    plain.close()
    varied.close()


def test_a_scene_looks_the_same_whatever_was_drawn_before() -> None:
    seeds, textures, images = range(12), list[int](), list[dict[int, np.ndarray]]()
    for order in (seeds, seeds[::-1]):
        env = TabletopEnv("Reach", perturb="colour")
        images.append({seed: env.reset(seed=seed)[0]["images"]["base_0_rgb"] for seed in order})
        textures.append(env.world.model.material("wood").texid[int(mujoco.mjtTextureRole.mjTEXROLE_RGB)])
        env.close()
    assert textures[0] != textures[1]  # each order began with what the other ended with
    for seed in seeds:
        np.testing.assert_array_equal(images[0][seed], images[1][seed])


def test_recordings_vary_each_aspect_half_of_the_time() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_aspects(ALL, rng) for _ in range(400)]
    for aspect in ASPECTS:
        assert 0.4 < np.mean([aspect in aspects for aspects in drawn]) < 0.6


def test_unknown_suites_are_named() -> None:
    with pytest.raises(ConfigError, match="No suite 'fog'; the suites are none, camera, light"):
        TabletopEnv("Reach", perturb="fog")
