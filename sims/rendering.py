"""Off-screen rendering: which OpenGL to use, and cameras with the quality each purpose needs.

A renderer belongs to the thread that made it: EGL refuses to render from another one.
"""

import ctypes.util
import importlib
import os
import sys
from contextlib import suppress
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from pi0_control.errors import RenderError

BACKENDS = ("egl", "osmesa", "glfw")


def choose_gl() -> str:
    """Which of :data:`BACKENDS` to render with: ``MUJOCO_GL`` where set, else EGL, else OSMesa, else a window system.

    Raises:
        RenderError: none is here.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower()
    if asked in BACKENDS:
        return asked
    if sys.platform.startswith("linux"):
        for library, backend in (("EGL", "egl"), ("OSMesa", "osmesa")):
            if ctypes.util.find_library(library):
                return backend
    if os.environ.get("DISPLAY") or not sys.platform.startswith("linux"):
        return "glfw"
    raise RenderError(
        "MuJoCo cannot render: neither EGL nor OSMesa is installed; "
        "install the Debian packages libegl1 and libgl1-mesa-dri (or libosmesa6)."
    )


class CameraRenderer:
    """Renders named cameras of one model at one size.

    MuJoCo's own Renderer fixes the OpenGL backend when mujoco is first imported; this one chooses it here, so that
    headless machines need no environment variable set in time.

    Args:
        pretty: shadows and antialiasing, five to ten times slower; for people, not for policies.

    Raises:
        RenderError: no OpenGL works here.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int, *, pretty: bool = False) -> None:
        self._model = model
        model.vis.quality.offsamples = 4 if pretty else 0
        self._context, self._gpu = _open_context(model, width, height)
        mujoco.mjr_setBuffer(int(mujoco.mjtFramebuffer.mjFB_OFFSCREEN), self._gpu)
        self._scene = mujoco.MjvScene(model, maxgeom=500)
        self._scene.flags[int(mujoco.mjtRndFlag.mjRND_SHADOW)] = int(pretty)
        self._option = mujoco.MjvOption()
        self._view = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), np.uint8)

    def render(self, data: mujoco.MjData, camera: str) -> NDArray[np.uint8]:
        """RGB uint8 [height, width, 3] as ``camera`` sees it."""
        view = mujoco.MjvCamera()
        view.type = int(mujoco.mjtCamera.mjCAMERA_FIXED)
        view.fixedcamid = self._model.camera(camera).id
        catmask = int(mujoco.mjtCatBit.mjCAT_ALL)
        mujoco.mjv_updateScene(self._model, data, self._option, None, view, catmask, self._scene)
        self._context.make_current()
        mujoco.mjr_render(self._view, self._scene, self._gpu)
        mujoco.mjr_readPixels(self._pixels, None, self._view, self._gpu)
        return np.ascontiguousarray(self._pixels[::-1])  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free the OpenGL context."""
        self._context.make_current()
        self._gpu.free()
        self._context.free()


def _open_context(model: mujoco.MjModel, width: int, height: int) -> tuple[Any, mujoco.MjrContext]:
    backend = choose_gl()
    with suppress(ImportError):  # where PyTorch brings it; imported after Mesa's renderer it would end the process
        importlib.import_module("triton")
    try:
        context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
        context.make_current()
        return context, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    except (ImportError, AttributeError, RuntimeError, OSError, mujoco.FatalError) as error:  # a library is missing
        raise RenderError(
            f"MuJoCo cannot render with {backend} ({error}); install the Debian packages libegl1 and libgl1-mesa-dri, "
            "or libosmesa6 and set MUJOCO_GL=osmesa."
        ) from error


def open_viewer(model: mujoco.MjModel, data: mujoco.MjData, camera: str) -> Any:
    """MuJoCo's interactive viewer in a window of its own, looking through ``camera``; call ``sync()`` after each step.

    Raises:
        RenderError: there is no display to open a window on.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise RenderError(
            "render_mode 'human' opens a window and needs a display, but DISPLAY is not set; use 'rgb_array'."
        )
    try:
        viewer = importlib.import_module("mujoco.viewer").launch_passive(
            model, data
        )  # asks for a display when imported
    except (ImportError, RuntimeError) as error:  # the latter on macOS outside mjpython
        raise RenderError(f"MuJoCo's viewer does not open here: {error}") from error
    with viewer.lock():
        viewer.cam.type = int(mujoco.mjtCamera.mjCAMERA_FIXED)
        viewer.cam.fixedcamid = model.camera(camera).id
    return viewer


def main() -> None:
    """``python -m sims.rendering``: say whether this machine can render and write videos, exit with 2 otherwise."""
    try:
        spec = mujoco.MjSpec()
        spec.worldbody.add_camera(name="camera")
        model = spec.compile()
        CameraRenderer(model, 16, 16).render(mujoco.MjData(model), "camera")
        importlib.import_module("cv2")  # needs libraries that a bare machine lacks
    except (RenderError, ImportError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"MuJoCo renders with {choose_gl()}.")


if __name__ == "__main__":
    main()
