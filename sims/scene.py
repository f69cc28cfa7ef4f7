"""The bundled robot and its table as an MjSpec, built from primitive geoms.

Frames: x forward from the robot's base, y to its left, z up, table top at z = 0; lengths in metres.
At zero joint angles the arm points straight up; shoulder, elbow and wrist bend it forward, and
shoulder + elbow + wrist = pi points the gripper straight down.
"""

import functools
from collections.abc import Sequence

import mujoco
import numpy as np
from mujoco import mjtGeom, mjtJoint, mjtLightType

from pi0_control.robot import RobotSpec

TIMESTEP_S = 0.002
BLOCK_HALF_M = 0.022
BLOCK_COLOURS = {
    "red": (0.86, 0.13, 0.12, 1),
    "green": (0.12, 0.62, 0.25, 1),
    "blue": (0.12, 0.30, 0.86, 1),
}
DISTRACTORS = ("distractor_0", "distractor_1", "distractor_2")
"""Things that no instruction names; below the floor unless a variation lays them on the table."""
NO_PATTERN = "white"
"""The table's texture unless a variation gives it another: a material compiled without one keeps what it drew last."""
TABLE_TEXTURES = {
    NO_PATTERN: mujoco.mjtBuiltin.mjBUILTIN_FLAT,
    "checker": mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
    "sheen": mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
    "speckle": mujoco.mjtBuiltin.mjBUILTIN_FLAT,
}
TRAY_CENTRE_M = (0.40, -0.34)
TRAY_HALF_M = 0.075
FINGER_TRAVEL_M = 0.04
"""Travel of each finger; an opening of 1 is twice this between the pads."""

SHOULDER_HEIGHT_M = 0.26
UPPER_ARM_M = 0.34
FOREARM_M = 0.32
WRIST_TO_HAND_M = 0.085
HAND_TO_TCP_M = 0.115

_WHITE, _GRAPHITE, _ACCENT, _BLACK = (
    (0.93, 0.94, 0.95, 1),
    (0.20, 0.21, 0.23, 1),
    (0.95, 0.45, 0.10, 1),
    (0.07, 0.07, 0.08, 1),
)
_STEEL = (0.62, 0.64, 0.67, 1)


def build_scene(robot: RobotSpec) -> mujoco.MjSpec:
    """The whole scene: room, table, tray, three blocks and the arm with its cameras.

    Args:
        robot: gives joint names, limits and efforts of the bundled six-axis arm.
    """
    spec = build_arm(robot)
    _add_room(spec)
    _add_table(spec)
    _add_tray(spec)
    for colour, rgba in BLOCK_COLOURS.items():
        _add_block(spec, colour, rgba)
    for name in DISTRACTORS:
        _add_distractor(spec, name)
    return spec


def build_arm(robot: RobotSpec) -> mujoco.MjSpec:
    """The arm alone: its joints come first in qpos, then the two fingers."""
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = TIMESTEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10
    _add_arm(spec, robot)
    return spec


def _add_room(spec: mujoco.MjSpec) -> None:
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 1280, 960
    spec.visual.quality.shadowsize = 2048
    spec.visual.headlight.ambient = [0.36, 0.36, 0.36]
    spec.visual.headlight.diffuse = [0.20, 0.20, 0.20]
    spec.visual.headlight.specular = [0.1, 0.1, 0.1]
    spec.visual.map.znear = 0.01
    texture, builtin = mujoco.mjtTexture, mujoco.mjtBuiltin.mjBUILTIN_GRADIENT
    spec.add_texture(
        name="sky",
        type=texture.mjTEXTURE_SKYBOX,
        builtin=builtin,
        rgb1=[0.86, 0.89, 0.92],
        rgb2=[0.55, 0.60, 0.66],
        width=128,
        height=128,
    )
    spec.add_texture(
        name="floor",
        type=texture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=[0.66, 0.68, 0.70],
        rgb2=[0.62, 0.64, 0.66],
        width=128,
        height=128,
    )
    floor = spec.add_material(name="floor", texrepeat=[4, 4], texuniform=True)
    floor.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "floor"
    wood = spec.add_material(name="wood", rgba=[0.74, 0.61, 0.46, 1], specular=0.1, shininess=0.2)
    wood.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = NO_PATTERN
    world = spec.worldbody
    world.add_light(
        name="key",
        type=mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[0.7, -0.7, 2.0],
        dir=[-0.25, 0.4, -1],
        diffuse=[0.52, 0.51, 0.49],
        specular=[0.25] * 3,
        castshadow=True,
    )
    world.add_light(
        name="fill",
        type=mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[0.2, 1.0, 2.0],
        dir=[0.1, -0.5, -1],
        diffuse=[0.16, 0.17, 0.20],
        specular=[0.0] * 3,
        castshadow=False,
    )
    world.add_geom(name="floor", type=mjtGeom.mjGEOM_PLANE, size=[4, 4, 0.1], pos=[0, 0, -0.74], material="floor")
    _add_camera(world, "base_0_rgb", 41, (1.02, -0.11, 0.66), (0.37, -0.11, 0.09))
    _add_camera(world, "scene", 38, (1.25, 0.80, 0.72), (0.20, -0.05, 0.20))


def _add_table(spec: mujoco.MjSpec) -> None:
    world = spec.worldbody
    world.add_geom(
        name="table",
        type=mjtGeom.mjGEOM_BOX,
        size=[0.48, 0.56, 0.02],
        pos=[0.28, 0, -0.02],
        material="wood",
        friction=[0.9, 0.01, 0.001],
    )
    _add_table_textures(spec)
    for x in (-0.15, 0.71):
        for y in (-0.51, 0.51):
            world.add_geom(type=mjtGeom.mjGEOM_BOX, size=[0.025, 0.025, 0.35], pos=[x, y, -0.39], rgba=_GRAPHITE)


def _add_table_textures(spec: mujoco.MjSpec) -> None:
    """Patterns of grey that a variation may give the table; its colour tints them."""
    for name, builtin in TABLE_TEXTURES.items():
        spec.add_texture(
            name=name,
            type=mujoco.mjtTexture.mjTEXTURE_2D,
            builtin=builtin,
            mark=mujoco.mjtMark.mjMARK_RANDOM if name == "speckle" else mujoco.mjtMark.mjMARK_NONE,
            random=0.2,
            markrgb=[0.6, 0.6, 0.6],
            rgb1=[1.0, 1.0, 1.0],
            rgb2=[0.75, 0.75, 0.75],
            width=128,
            height=128,
        )


def _add_tray(spec: mujoco.MjSpec) -> None:
    tray = spec.worldbody.add_body(name="tray", pos=[*TRAY_CENTRE_M, 0])
    half, wall, height = TRAY_HALF_M, 0.004, 0.016
    tray.add_geom(
        name="tray_floor",
        type=mjtGeom.mjGEOM_BOX,
        size=[half, half, 0.002],
        pos=[0, 0, 0.002],
        rgba=(0.30, 0.32, 0.36, 1),
    )
    for index, (x, y) in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1))):
        size = [wall if x else half + 2 * wall, wall if y else half + 2 * wall, height]
        tray.add_geom(
            name=f"tray_wall_{index}",
            type=mjtGeom.mjGEOM_BOX,
            size=size,
            rgba=(0.24, 0.26, 0.30, 1),
            pos=[x * (half + wall), y * (half + wall), height],
        )


def _add_block(spec: mujoco.MjSpec, colour: str, rgba: Sequence[float]) -> None:
    block = spec.worldbody.add_body(name=colour, pos=[0.4, 0, BLOCK_HALF_M])
    block.add_freejoint()
    block.add_geom(
        name=colour,
        type=mjtGeom.mjGEOM_BOX,
        size=[BLOCK_HALF_M] * 3,
        rgba=rgba,
        mass=0.08,
        condim=4,
        friction=[1.0, 0.02, 0.001],
        solref=[0.01, 1],
    )


def _add_distractor(spec: mujoco.MjSpec, name: str) -> None:
    thing = spec.worldbody.add_body(name=name, pos=[0, 0, -2], mocap=True)
    thing.add_geom(name=name, type=mjtGeom.mjGEOM_BOX, size=[BLOCK_HALF_M] * 3, rgba=_STEEL)


def _add_arm(spec: mujoco.MjSpec, robot: RobotSpec) -> None:
    body = _add_pedestal(spec)
    axes = ((0, 0, 1), (0, 1, 0), (0, 1, 0), (0, 0, 1), (0, 1, 0), (0, 0, 1))
    offsets = (0.10, SHOULDER_HEIGHT_M - 0.10, UPPER_ARM_M, 0.12, FOREARM_M - 0.12, 0.0)
    masses = (3.0, 3.0, 2.0, 1.2, 0.8, 0.4)
    shapes = (_waist, _upper_arm, _elbow, _forearm, _wrist, _flange)
    for joint, axis, offset, mass, shape in zip(robot.joints[:-1], axes, offsets, masses, shapes, strict=True):
        body = body.add_body(name=joint.name, pos=[0, 0, offset], gravcomp=1)
        body.add_joint(
            name=joint.name,
            type=mjtJoint.mjJNT_HINGE,
            axis=axis,
            range=[joint.lower, joint.upper],
            damping=1.0,
            armature=0.08,
            actfrcrange=[-joint.max_effort, joint.max_effort],
        )
        shape(body, mass)
        stiffness = 15.0 * joint.max_effort
        _add_servo(spec, joint.name, [joint.lower, joint.upper], stiffness, 0.08 * stiffness, joint.max_effort)
    _add_hand(spec, body, robot.joints[-1].name, robot.joints[-1].max_effort)


def _add_servo(spec: mujoco.MjSpec, joint: str, limits: Sequence[float], kp: float, kv: float, effort: float) -> None:
    servo = spec.add_actuator(
        name=joint,
        target=joint,
        trntype=mujoco.mjtTrn.mjTRN_JOINT,
        ctrllimited=True,
        ctrlrange=limits,
        forcelimited=True,
        forcerange=[-effort, effort],
    )
    servo.set_to_position(kp=kp, kv=kv)


def _add_pedestal(spec: mujoco.MjSpec) -> mujoco.MjsBody:
    base = spec.worldbody.add_body(name="base")
    _cylinder(base, (0, 0, 0), (0, 0, 0.018), 0.095, _GRAPHITE, 0)
    _cylinder(base, (0, 0, 0.018), (0, 0, 0.10), 0.068, _WHITE, 0)
    return base


def _waist(body: mujoco.MjsBody, mass: float) -> None:
    top = SHOULDER_HEIGHT_M - 0.10
    _cylinder(body, (0, 0, 0.0), (0, 0, 0.012), 0.070, _ACCENT, 0)
    _capsule(body, (0, 0, 0.045), (0, 0, top), 0.062, _WHITE, mass)
    _cylinder(body, (0, -0.075, top), (0, 0.075, top), 0.060, _GRAPHITE, 0)


def _upper_arm(body: mujoco.MjsBody, mass: float) -> None:
    for side in (-1, 1):
        _cylinder(body, (0, side * 0.076, 0), (0, side * 0.088, 0), 0.054, _ACCENT, 0)
    _capsule(body, (0, 0.0, 0.05), (0, 0.0, UPPER_ARM_M - 0.05), 0.050, _WHITE, mass)
    _cylinder(body, (0, -0.06, UPPER_ARM_M), (0, 0.06, UPPER_ARM_M), 0.050, _GRAPHITE, 0)


def _elbow(body: mujoco.MjsBody, mass: float) -> None:
    for side in (-1, 1):
        _cylinder(body, (0, side * 0.061, 0), (0, side * 0.072, 0), 0.044, _ACCENT, 0)
    _capsule(body, (0, 0, 0.02), (0, 0, 0.095), 0.047, _WHITE, mass)
    _cylinder(body, (0, 0, 0.102), (0, 0, 0.120), 0.046, _GRAPHITE, 0)


def _forearm(body: mujoco.MjsBody, mass: float) -> None:
    length = FOREARM_M - 0.12
    _cylinder(body, (0, 0, 0.0), (0, 0, 0.010), 0.043, _ACCENT, 0)
    _capsule(body, (0, 0, 0.03), (0, 0, length - 0.04), 0.038, _WHITE, mass)
    _cylinder(body, (0, -0.046, length), (0, 0.046, length), 0.038, _GRAPHITE, 0)


def _wrist(body: mujoco.MjsBody, mass: float) -> None:
    for side in (-1, 1):
        _cylinder(body, (0, side * 0.047, 0), (0, side * 0.055, 0), 0.033, _ACCENT, 0)
    _capsule(body, (0, 0, 0.0), (0, 0, 0.035), 0.034, _WHITE, mass)


def _flange(body: mujoco.MjsBody, mass: float) -> None:
    _cylinder(body, (0, 0, 0.058), (0, 0, 0.070), 0.036, _GRAPHITE, mass)
    _cylinder(body, (0, 0, 0.070), (0, 0, WRIST_TO_HAND_M), 0.032, _ACCENT, 0)


def _add_hand(spec: mujoco.MjSpec, flange: mujoco.MjsBody, gripper: str, effort: float) -> None:
    """Palm, two coupled fingers along y, the tool centre point between the pads, and a camera on each side."""
    hand = flange.add_body(name="hand", pos=[0, 0, WRIST_TO_HAND_M], gravcomp=1)
    hand.add_geom(
        name="palm", type=mjtGeom.mjGEOM_BOX, size=[0.024, 0.068, 0.022], pos=[0, 0, 0.022], rgba=_GRAPHITE, mass=0.35
    )
    _trim_box(hand, [0.0245, 0.030, 0.010], [0, 0, 0.022], _WHITE)
    hand.add_site(name="tcp", pos=[0, 0, HAND_TO_TCP_M], size=[0.004] * 3, group=4)
    for name, side in (("left", 1), ("right", -1)):
        _add_finger(hand, name, side, gripper if side > 0 else f"{gripper}_mirror")
        _add_wrist_camera(hand, f"{name}_wrist_0_rgb", side)
    coupling = spec.add_equality(
        name="fingers",
        type=mujoco.mjtEq.mjEQ_JOINT,
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        name1=f"{gripper}_mirror",
        name2=gripper,
        solref=[0.005, 1],
    )
    coupling.data[:5] = [0, 1, 0, 0, 0]
    _add_servo(spec, gripper, [0, FINGER_TRAVEL_M], 2000.0, 90.0, effort)


def _add_finger(hand: mujoco.MjsBody, name: str, side: int, joint: str) -> None:
    finger = hand.add_body(name=f"{name}_finger", pos=[0, 0, 0.044], gravcomp=1)
    finger.add_joint(
        name=joint, type=mjtJoint.mjJNT_SLIDE, axis=[0, side, 0], range=[0, FINGER_TRAVEL_M], damping=5, armature=0.1
    )
    _trim_box(finger, [0.012, 0.010, 0.014], [0, side * 0.012, 0.012], _STEEL, 0.04)
    finger.add_geom(
        name=f"{name}_finger",
        type=mjtGeom.mjGEOM_BOX,
        size=[0.010, 0.005, 0.036],
        pos=[0, side * 0.0052, 0.045],
        rgba=_BLACK,
        mass=0.03,
        condim=4,
        friction=[1.6, 0.05, 0.001],
        solref=[0.01, 1],
    )


def _add_wrist_camera(hand: mujoco.MjsBody, name: str, side: int) -> None:
    _add_camera(hand, name, 70, (0, side * 0.125, 0.040), (0, side * 0.022, 0.165), up=(-1, 0, 0))
    _trim_box(hand, [0.010, 0.030, 0.004], [0, side * 0.095, 0.012], _STEEL)
    _trim_box(hand, [0.013, 0.013, 0.012], [0, side * 0.126, 0.014], _BLACK, 0.02)


def _trim_box(
    body: mujoco.MjsBody, size: Sequence[float], pos: Sequence[float], rgba: Sequence[float], mass: float = 0
) -> None:
    """A box that is drawn and weighed but touches nothing."""
    body.add_geom(type=mjtGeom.mjGEOM_BOX, size=size, pos=pos, rgba=rgba, mass=mass, contype=0, conaffinity=0)


def _round(
    kind: mjtGeom,
    body: mujoco.MjsBody,
    start: Sequence[float],
    end: Sequence[float],
    radius: float,
    rgba: Sequence[float],
    mass: float,
) -> None:
    solid = int(mass > 0)  # trim is drawn, not felt
    body.add_geom(
        type=kind, fromto=[*start, *end], size=[radius, 0, 0], rgba=rgba, mass=mass, contype=solid, conaffinity=solid
    )


_capsule = functools.partial(_round, mjtGeom.mjGEOM_CAPSULE)
_cylinder = functools.partial(_round, mjtGeom.mjGEOM_CYLINDER)


def _add_camera(
    body: mujoco.MjsBody,
    name: str,
    fovy_deg: float,
    position: Sequence[float],
    target: Sequence[float],
    up: Sequence[float] = (0, 0, 1),
) -> None:
    """A camera at ``position`` that looks at ``target``: MuJoCo cameras look along their -z."""
    back = np.subtract(position, target)
    back = back / np.linalg.norm(back)
    right = np.cross(up, back)
    right = right / np.linalg.norm(right)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([right, np.cross(back, right), back]).ravel())
    body.add_camera(name=name, pos=position, quat=quat, fovy=fovy_deg)
