import ctypes.util
import os
import subprocess
import sys

import numpy as np
import pytest

from pi0_control.errors import RenderError
from pi0_control.robot import RobotSpec
from sims.rendering import CameraRenderer, choose_gl
from sims.world import TabletopWorld


@pytest.fixture
def headless(monkeypatch) -> pytest.MonkeyPatch:
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    return monkeypatch


@pytest.mark.parametrize(("installed", "choice"), [(("EGL", "OSMesa"), "egl"), (("OSMesa",), "osmesa")])
def test_headless_machines_choose_by_themselves(headless, installed, choice) -> None:
    headless.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so" if name in installed else None)
    assert choose_gl() == choice


def test_without_opengl_one_sentence_names_the_debian_package(headless) -> None:
    headless.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(RenderError, match=r"neither EGL nor OSMesa is installed; install the Debian packages libegl1"):
        choose_gl()


def test_what_the_user_asked_for_wins(headless) -> None:
    headless.setenv("MUJOCO_GL", "osmesa")
    assert choose_gl() == "osmesa"


def test_no_environment_variable_is_needed_even_if_mujoco_was_imported_first() -> None:
    code = "import mujoco, sims.rendering; sims.rendering.main()"
    env = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "DISPLAY")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "MuJoCo renders with" in done.stdout


def test_an_opengl_that_cannot_be_loaded_is_one_sentence_about_packages() -> None:
    code = "import sys\nsys.modules['mujoco'] = None\nimport sims"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "RenderError: MuJoCo cannot load the OpenGL" in done.stderr
    assert "libegl1" in done.stderr


def test_triton_may_be_imported_after_something_was_rendered() -> None:
    """It and Mesa's renderer each have an LLVM of their own."""
    pytest.importorskip("triton")
    code = "from sims.rendering import main; main(); import triton"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_renderers_of_different_quality_live_side_by_side() -> None:
    world = TabletopWorld(RobotSpec.from_yaml("arm6"))
    world.reset(np.random.default_rng(0))
    plain, pretty = CameraRenderer(world.model, 64, 96), CameraRenderer(world.model, 64, 96, pretty=True)
    before = plain.render(world.data, "scene")
    shadowed = pretty.render(world.data, "scene")
    assert before.shape == shadowed.shape == (64, 96, 3)
    assert not np.array_equal(before, shadowed)
    np.testing.assert_array_equal(plain.render(world.data, "scene"), before)
    plain.close()
    pretty.close()
