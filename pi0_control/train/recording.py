"""A dataset as the doctor looks at it, and what a policy keeps of it for the doctor."""

from collections.abc import Mapping
from pathlib import Path

from pi0_control.doctor import Recording
from pi0_control.policy.camera_stats import CameraStats
from pi0_control.train import layout
from pi0_control.train.dataset import Dataset
from pi0_control.train.inspection import glimpse


def read_recording(root: Path, cameras: Mapping[str, str]) -> Recording:
    """All numbers and some images of a LeRobotDataset.

    Args:
        root: folder of a LeRobotDataset v2.0, v2.1 or v3.0.
        cameras: what the dataset calls a camera of the robot, where that is another name.

    Raises:
        DatasetError: a file is missing or broken, or there is no episode.
    """
    dataset = Dataset.open(root, require_finite=False)
    looks = glimpse(dataset)
    called = {name: robot_name for robot_name, name in cameras.items()}
    return Recording(
        source=f"{root}: {len(dataset.episodes)} episodes, {len(dataset)} frames at {dataset.fps} fps",
        states=dataset.states,
        actions=dataset.actions,
        episode=dataset.episode_index,
        rate_hz=float(dataset.fps),
        state_names=layout.joint_names_of(dataset.features, layout.STATE),
        action_names=layout.joint_names_of(dataset.features, layout.ACTION),
        images={
            called.get(camera, camera): [image for look in looks for image in look.images[camera]]
            for camera in dataset.cameras
            if camera in called or camera not in cameras
        },
    )


def camera_stats(dataset: Dataset, cameras: Mapping[str, str]) -> dict[str, CameraStats]:
    """What cameras show, from some of their images.

    Args:
        dataset: is looked at at moments spread over all of it.
        cameras: what the dataset calls each camera of the robot.
    """
    looks = glimpse(dataset, episodes=20, moments=5)
    seen = {camera: [image for look in looks for image in look.images[name]] for camera, name in cameras.items()}
    return {camera: CameraStats.of(images) for camera, images in seen.items() if images}
