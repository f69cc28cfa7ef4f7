"""What may differ from the plain scene, aspect by aspect: in recordings to learn from it, in evaluation to be tested.

Every draw here comes after those of the plain scene, so the same seed lays the same blocks whatever varies.
"""

import colorsys
from collections.abc import Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from pi0_control.errors import ConfigError
from sims.scene import BLOCK_HALF_M, DISTRACTORS, TABLE_TEXTURES

ASPECTS = ("camera", "light", "colour", "size", "distractors", "wording", "start")
NONE, ALL = "none", "all"
SUITES = (NONE, *ASPECTS, ALL)

CAMERA_SHIFT_M = {"base_0_rgb": 0.03, "left_wrist_0_rgb": 0.004, "right_wrist_0_rgb": 0.004}
CAMERA_TURN_RAD = 0.04
CAMERA_FOVY_DEG = 2.0
LIGHT_SCALE = (0.6, 1.4)
LIGHT_TURN = 0.4
SURFACE_RGB = (0.25, 0.95)
BLOCK_HUE = 0.03
BLOCK_HALF_RANGE_M = (0.019, 0.025)
DISTRACTOR_HALF_RANGE_M = (0.014, 0.024)
DISTRACTOR_COLOURS = (
    (0.93, 0.80, 0.12),  # yellow
    (0.55, 0.20, 0.70),  # purple
    (0.95, 0.95, 0.93),  # white
    (0.10, 0.10, 0.11),  # black
    (0.95, 0.55, 0.70),  # pink
)
DISTRACTOR_REGION_M = ((0.22, -0.22), (0.58, 0.32))
"""Corners (x, y) of the part of the table where things lie that no instruction names."""
DISTRACTOR_SPACING_M = 0.09


def aspects_of(suite: str) -> frozenset[str]:
    """The aspects that vary in a suite: one of :data:`ASPECTS`, all of them for ``all``, nothing for ``none``.

    Raises:
        ConfigError: there is no such suite.
    """
    if suite not in SUITES:
        raise ConfigError(f"No suite {suite!r}; the suites are {', '.join(SUITES)}.")
    return frozenset(ASPECTS) if suite == ALL else frozenset({suite} - {NONE})


class Variation:
    """Changes a compiled scene in place and brings it back.

    Args:
        model: of :func:`sims.scene.build_scene`, as yet unchanged.
    """

    _VARIED = (
        *("cam_pos", "cam_quat", "cam_fovy", "light_dir", "light_diffuse", "mat_rgba", "mat_texid", "mat_texrepeat"),
        *("geom_rgba", "geom_size", "geom_rbound", "geom_aabb", "geom_type", "bvh_aabb", "body_inertia"),
    )

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._plain = {name: getattr(model, name).copy() for name in self._VARIED}
        headlight = model.vis.headlight
        self._plain_headlight = headlight.ambient.copy(), headlight.diffuse.copy()

    def reset(self) -> None:
        """Back to the plain scene."""
        for name, values in self._plain.items():
            getattr(self._model, name)[:] = values
        self._model.vis.headlight.ambient, self._model.vis.headlight.diffuse = self._plain_headlight

    def draw_looks(self, aspects: frozenset[str], rng: np.random.Generator) -> None:
        """Vary cameras, light and colours of the plain scene."""
        if "camera" in aspects:
            self._vary_cameras(rng)
        if "light" in aspects:
            self._vary_light(rng)
        if "colour" in aspects:
            self._vary_colours(rng)

    def resize(self, name: str, half_m: float) -> None:
        """Fit a body's one geom, of the same name, into another cube, with its bounds and inertia; its weight stays."""
        geom, body = self._model.geom(name), self._model.body(name)
        geom.size[:] = half_m
        geom.rbound[:] = np.sqrt(3) * half_m
        body.inertia[:] = body.mass * (2 * half_m) ** 2 / 6
        self._model.geom_aabb[geom.id, 3:] = half_m
        self._model.bvh_aabb[self._model.body_bvhadr[body.id], 3:] = half_m

    def lay_distractors(
        self, data: mujoco.MjData, taken: Sequence[NDArray[np.floating]], rng: np.random.Generator
    ) -> None:
        """Put some things on the table, each of a random shape, size and colour, away from the places ``taken``."""
        places = [np.asarray(place[:2]) for place in taken]
        for name in DISTRACTORS[: rng.integers(1, len(DISTRACTORS) + 1)]:
            for _ in range(20):  # a full table takes no more
                place = rng.uniform(*DISTRACTOR_REGION_M)
                if all(np.linalg.norm(place - other) > DISTRACTOR_SPACING_M for other in places):
                    places.append(place)
                    self._lay(data, name, place, rng)
                    break

    def _lay(self, data: mujoco.MjData, name: str, place: NDArray[np.float64], rng: np.random.Generator) -> None:
        half, geom = rng.uniform(*DISTRACTOR_HALF_RANGE_M), self._model.geom(name)
        kinds = (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_SPHERE)
        kind = kinds[rng.integers(len(kinds))]
        geom.type[:] = int(kind)
        self.resize(name, half)
        geom.rgba[:3] = DISTRACTOR_COLOURS[rng.integers(len(DISTRACTOR_COLOURS))]
        data.mocap_pos[self._model.body(name).mocapid[0]] = [*place, half]

    def _vary_cameras(self, rng: np.random.Generator) -> None:
        for name, shift_m in CAMERA_SHIFT_M.items():
            camera = self._model.camera(name)
            camera.pos[:] += rng.uniform(-shift_m, shift_m, 3)
            camera.fovy[:] += rng.uniform(-CAMERA_FOVY_DEG, CAMERA_FOVY_DEG)
            turn = np.empty(4)
            axis = rng.normal(size=3)
            mujoco.mju_axisAngle2Quat(turn, axis / np.linalg.norm(axis), rng.uniform(0, CAMERA_TURN_RAD))
            turned = np.empty(4)
            mujoco.mju_mulQuat(turned, camera.quat, turn)
            camera.quat[:] = turned

    def _vary_light(self, rng: np.random.Generator) -> None:
        headlight = self._model.vis.headlight
        headlight.ambient = headlight.ambient * rng.uniform(*LIGHT_SCALE)
        headlight.diffuse = headlight.diffuse * rng.uniform(*LIGHT_SCALE)
        for light in range(self._model.nlight):
            direction = self._model.light_dir[light] + rng.uniform(-LIGHT_TURN, LIGHT_TURN, 3) * (1, 1, 0)
            self._model.light_dir[light] = direction / np.linalg.norm(direction)
            self._model.light_diffuse[light] *= rng.uniform(*LIGHT_SCALE) * rng.uniform(0.9, 1.1, 3)

    def _vary_colours(self, rng: np.random.Generator) -> None:
        """Table and floor of any pale or dark colour with or without texture, and another shade for each block."""
        for name in ("wood", "floor"):
            grey, tint = rng.uniform(*SURFACE_RGB), rng.uniform(-0.12, 0.12, 3)
            self._model.material(name).rgba[:3] = np.clip(grey + tint, 0, 1)
        wood = self._model.material("wood")
        texture = rng.choice(list(TABLE_TEXTURES))
        wood.texid[int(mujoco.mjtTextureRole.mjTEXROLE_RGB)] = self._model.texture(texture).id
        wood.texrepeat[:] = rng.uniform(1, 6)
        for name in ("red", "green", "blue"):
            rgba = self._model.geom(name).rgba
            hue, saturation, value = colorsys.rgb_to_hsv(*rgba[:3])
            hue, saturation = hue + rng.uniform(-BLOCK_HUE, BLOCK_HUE), saturation * rng.uniform(0.75, 1.05)
            rgba[:3] = colorsys.hsv_to_rgb(hue % 1, min(saturation, 1), min(value * rng.uniform(0.7, 1.2), 1))


def draw_aspects(suite: str, rng: np.random.Generator) -> frozenset[str]:
    """For recordings: each aspect of the suite in half of the scenes, so that the plain look is learned too."""
    aspects = sorted(aspects_of(suite))
    return frozenset(aspect for aspect in aspects if rng.random() < 0.5)


def draw_half(rng: np.random.Generator) -> float:
    """Half the edge of a block [m], plain size ± 14 %."""
    low, high = BLOCK_HALF_RANGE_M
    assert low < BLOCK_HALF_M < high
    return float(rng.uniform(low, high))
