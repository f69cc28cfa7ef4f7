"""The dataset's laws: what was saved is read back, however the recording ended; chunks end with their episode."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pi0_control.errors import ConfigError, DatasetError
from pi0_control.robot import Joint, RobotSpec
from pi0_control.train import layout
from pi0_control.train.cache import decode_images
from pi0_control.train.dataset import Dataset
from pi0_control.train.video import VideoWriter
from pi0_control.train.writer import DatasetWriter

ROBOT = RobotSpec(
    "two_joints",
    (Joint("swing", "revolute", -2, 2, 1, 1, 0), Joint("grip", "gripper", 0, 1, 1, 1, 1)),
    ("top", "wrist"),
    20.0,
)
SIZE = (32, 48)
OBJECTS = ("red block", "blue block")


def writer(root, **changes) -> DatasetWriter:
    return DatasetWriter(**{"root": root, "robot": ROBOT, "object_names": OBJECTS, "image_size": SIZE, **changes})


def shade(frame: int, camera: int) -> np.ndarray:
    """A plain image whose colour tells frame and camera."""
    return np.full((*SIZE, 3), (20 + 20 * frame, 200 - 15 * frame, 60 + 90 * camera), np.uint8)


def add(recorder: DatasetWriter, length: int, first: int = 0) -> None:
    for frame in range(first, first + length):
        images = {"top": shade(frame, 0), "wrist": shade(frame, 1)}
        recorder.add_frame(images, [frame, 0.5], [frame + 0.25, 1.0], np.full((2, 3), frame / 10))


def record(recorder: DatasetWriter, length: int, prompt: str = "push the red block", targets: tuple = (0,)) -> int:
    add(recorder, length)
    return recorder.save_episode(prompt, targets, {"seed": length})


def test_what_was_saved_is_read_back(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 5)
        record(recorder, 3, "lift the blue block", (1,))
        assert (recorder.num_episodes, recorder.num_frames) == (2, 8)
    dataset = Dataset.open(tmp_path)
    assert (len(dataset), dataset.fps, dataset.cameras, dataset.object_names) == (8, 20, ("top", "wrist"), OBJECTS)
    steps = np.r_[0:5, 0:3].astype(np.float32)
    np.testing.assert_array_equal(dataset.states, np.stack([steps, np.full(8, 0.5)], 1))
    np.testing.assert_array_equal(dataset.actions, np.stack([steps + 0.25, np.ones(8)], 1))
    np.testing.assert_array_equal(dataset.objects[:, 1, 2], steps / np.float32(10))
    assert dataset.targets.tolist() == [[0, -1]] * 5 + [[1, -1]] * 3
    assert [dataset.prompt(i) for i in (4, 5)] == ["push the red block", "lift the blue block"]
    assert [(e.start, e.length, e.metadata) for e in dataset.episodes] == [(0, 5, {"seed": 5}), (5, 3, {"seed": 3})]


def test_statistics_are_those_of_all_frames(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 5)
        record(recorder, 3)
    dataset = Dataset.open(tmp_path)
    stats = json.loads((tmp_path / "meta" / "stats.json").read_text())
    for name, reduce in {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}.items():
        np.testing.assert_allclose(stats["action"][name], reduce(dataset.actions, axis=0), atol=1e-6)
    assert stats["action"]["count"] == [8]
    red = [20 + 20 * frame for frame in (*range(5), *range(3))]
    image = stats["observation.images.top"]
    assert image["mean"][0][0][0] == pytest.approx(np.mean(red) / 255)
    assert (image["min"][0][0][0], image["max"][0][0][0]) == pytest.approx((20 / 255, 100 / 255))


def test_several_roots_read_as_one(tmp_path: Path):
    for name, prompt in (("a", "push the red block"), ("b", "lift the red block")):
        with writer(tmp_path / name) as recorder:
            record(recorder, 3, "wait", ())
            record(recorder, 2, prompt)
    dataset = Dataset.open([tmp_path / "a", tmp_path / "b"])
    assert [episode.start for episode in dataset.episodes] == [0, 3, 5, 8]
    assert [dataset.prompt(i) for i in (0, 3, 5, 8)] == ["wait", "push the red block", "wait", "lift the red block"]
    assert len(dataset.tasks) == 3


def test_roots_of_other_objects_do_not_mix(tmp_path: Path):
    for name, objects in (("a", OBJECTS), ("b", ("cup", "plate"))):
        with writer(tmp_path / name, object_names=objects) as recorder:
            record(recorder, 2)
    with pytest.raises(DatasetError, match="cup"):
        Dataset.open([tmp_path / "a", tmp_path / "b"])


def test_roots_of_other_joints_do_not_mix(tmp_path: Path):
    swapped = replace(ROBOT, joints=ROBOT.joints[::-1])
    for name, robot in (("a", ROBOT), ("b", swapped)):
        with writer(tmp_path / name, robot=robot) as recorder:
            record(recorder, 2)
    with pytest.raises(DatasetError, match=r"\['grip', 'swing'\], others \['swing', 'grip'\]"):
        Dataset.open([tmp_path / "a", tmp_path / "b"])


def test_recording_goes_on_after_reopening(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 3)
        add(recorder, 2)  # never saved
    with writer(tmp_path) as recorder:
        assert record(recorder, 4, "lift the blue block", (1,)) == 1
    assert [episode.length for episode in Dataset.open(tmp_path).episodes] == [3, 4]
    assert not list(tmp_path.rglob("*" + layout.PARTIAL))


def test_discarded_frames_leave_no_trace(tmp_path: Path):
    with writer(tmp_path) as recorder:
        add(recorder, 4)
        assert recorder.episode_length == 4
        recorder.discard_episode()
        assert recorder.episode_length == 0
        record(recorder, 2)
    assert len(Dataset.open(tmp_path)) == 2


class KilledError(BaseException):
    """Stands for the power going out; nothing in the package catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let ``count`` flushes and renames pass; the next one does not happen."""
    left = [count]

    def guarded(operation):
        def run(*args):
            if not left[0]:
                raise KilledError
            left[0] -= 1
            return operation(*args)

        return run

    monkeypatch.setattr(layout.os, "replace", guarded(os.replace))
    monkeypatch.setattr(layout.os, "fsync", guarded(os.fsync))


def test_a_kill_between_any_two_file_operations_loses_at_most_the_running_episode(tmp_path: Path):
    operations = 0
    while True:
        root = tmp_path / str(operations)
        saved = 0
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, operations)
            try:
                recorder = writer(root)
                for length in (2, 3):
                    record(recorder, length, f"task {length}")
                    saved += 1
            except KilledError:
                pass
            else:
                break
        reopened = writer(root)
        assert reopened.num_episodes in (saved, saved + 1)
        record(reopened, 4, "task 4")
        lengths = [episode.length for episode in Dataset.open(root).episodes]
        assert lengths == [*[2, 3][: reopened.num_episodes - 1], 4]
        operations += 1
    assert operations > 40  # info, then twice: tasks, two videos, data, episode, stats, info


@pytest.mark.parametrize("left", ["meta", "meta data", "meta data videos"])
def test_what_is_left_of_a_first_episode_that_was_never_finished_is_replaced(tmp_path: Path, left: str):
    with writer(tmp_path) as recorder:
        record(recorder, 3)
    for name in {"data", "videos"} - set(left.split()):
        shutil.rmtree(tmp_path / name)
    shutil.rmtree(tmp_path / "meta" / "episodes")
    for name in ("info.json", "stats.json"):
        (tmp_path / "meta" / name).unlink()
    with writer(tmp_path) as recorder:
        assert recorder.num_episodes == 0
        record(recorder, 2, "lift the blue block", (1,))
    dataset = Dataset.open(tmp_path)
    assert (len(dataset), dataset.tasks) == (2, ("lift the blue block",))


def test_complete_episodes_without_their_info_are_not_overwritten(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 3)
    (tmp_path / "meta" / "info.json").unlink()
    with pytest.raises(DatasetError, match=r"but no meta/info\.json"):
        writer(tmp_path)


def test_chunks_repeat_the_last_action_behind_the_end_of_the_episode(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 4)
        record(recorder, 3)
    actions, is_pad = Dataset.open(tmp_path).action_chunks([0, 2, 6], horizon=3)
    np.testing.assert_array_equal(actions[..., 0] - 0.25, [[0, 1, 2], [2, 3, 3], [2, 2, 2]])
    np.testing.assert_array_equal(is_pad, [[False] * 3, [False, False, True], [False, True, True]])


def packed(root: Path) -> None:
    """Rewrite a recording the way LeRobot does: all episodes in one data file, one metadata file, one video each."""
    dataset = Dataset.open(root)
    first = {"chunk_index": 0, "file_index": 0}
    data = [pq.read_table(root / layout.DATA_PATH.format(**layout.location(e.index))) for e in dataset.episodes]
    rows = [pq.read_table(root / layout.EPISODES_PATH.format(**layout.location(e.index))) for e in dataset.episodes]
    rows = [table.to_pylist()[0] for table in rows]
    for camera_index, camera in enumerate(dataset.cameras):
        key = layout.IMAGES + camera
        video = VideoWriter(root / layout.VIDEO_PATH.format(video_key=key, **first), SIZE, dataset.fps)
        for episode, row in zip(dataset.episodes, rows, strict=True):
            row[f"videos/{key}/from_timestamp"] = episode.start / dataset.fps
            row[f"videos/{key}/file_index"] = 0
            row["data/file_index"] = 0
            for frame in range(episode.length):
                video.write(shade(frame, camera_index))
        video.close()
    for file in [*root.glob("data/*/*.parquet"), *root.glob("meta/episodes/*/*.parquet")]:
        file.unlink()
    pq.write_table(pa.concat_tables(data[::-1]), root / layout.DATA_PATH.format(**first))
    pq.write_table(pa.Table.from_pylist(rows), root / layout.EPISODES_PATH.format(**first))


def test_several_episodes_in_one_file_read_the_same(tmp_path: Path):
    with writer(tmp_path) as recorder:
        for length in (4, 2, 3):
            record(recorder, length, f"task {length}")
    before = Dataset.open(tmp_path)
    packed(tmp_path)
    after = Dataset.open(tmp_path)
    np.testing.assert_array_equal(after.states, before.states)
    assert [after.prompt(i) for i in range(9)] == [before.prompt(i) for i in range(9)]
    assert [e.videos["top"].from_s for e in after.episodes] == pytest.approx([0.0, 0.2, 0.3])


def check_pixels(dataset: Dataset, images: np.ndarray) -> None:
    """Every image shows the shade of its frame and camera (within what the codec costs), padded to a square."""
    for index in range(len(dataset)):
        frame = index - dataset.episodes[dataset.episode_index[index]].start
        for slot, camera in enumerate(("wrist", "top")):
            expected = shade(frame, ("top", "wrist").index(camera))[0, 0]
            np.testing.assert_allclose(images[index, slot, 8, 8], expected, atol=6)
            assert not images[index, slot, :2].any()


@pytest.mark.parametrize("rewrite", [lambda root: None, packed], ids=["one_each", "packed"])
def test_decoded_images_are_those_of_their_frames(tmp_path: Path, rewrite):
    with writer(tmp_path / "data") as recorder:
        for length in (4, 2, 3):
            record(recorder, length)
    rewrite(tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data")
    images = decode_images(dataset, ("wrist", "top"), 16, tmp_path / "cache", threads=2)
    assert images.shape == (9, 2, 16, 16, 3)
    check_pixels(dataset, images)


def test_a_stale_cache_is_never_used(tmp_path: Path):
    with writer(tmp_path / "data") as recorder:
        record(recorder, 2)
        dataset = Dataset.open(tmp_path / "data")
        decode_images(dataset, ("top",), 16, tmp_path / "cache", threads=1)
        kept = list((tmp_path / "cache").iterdir())
        decode_images(dataset, ("top",), 16, tmp_path / "cache", threads=1)
        assert list((tmp_path / "cache").iterdir()) == kept  # nothing new, nothing partial
        record(recorder, 3)
    images = decode_images(Dataset.open(tmp_path / "data"), ("top",), 16, tmp_path / "cache", threads=1)
    assert images.shape[0] == 5


def test_a_video_that_breaks_off_is_named(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 3)
    dataset = Dataset.open(tmp_path)
    path = dataset.episodes[0].videos["top"].path
    short = VideoWriter(path, SIZE, 20)
    short.write(shade(0, 0))
    short.close()
    with pytest.raises(DatasetError, match="lacks 2 of the 3 frames"):
        decode_images(dataset, ("top",), 16, tmp_path / "cache", threads=1)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match="not a readable video"):
        decode_images(dataset, ("top",), 16, tmp_path / "cache", threads=1)
    path.unlink()
    with pytest.raises(DatasetError, match="No video"):
        decode_images(dataset, ("top",), 16, tmp_path / "cache", threads=1)
    with pytest.raises(DatasetError, match="no camera 'side'"):
        decode_images(dataset, ("side",), 16, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_recording_without_objects(tmp_path: Path):
    with writer(tmp_path, object_names=()) as recorder:
        recorder.add_frame({"top": shade(0, 0), "wrist": shade(0, 1)}, [0, 0], [0, 0])
        recorder.save_episode("wait")
    dataset = Dataset.open(tmp_path)
    assert dataset.objects.shape == (1, 0, 3)
    assert dataset.targets.tolist() == [[-1, -1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": [0.0]}, r"State has shape \(1,\); expected \(2,\)"),
        ({"action": [0.0, np.nan]}, "Action is .*nan.*finite"),
        ({"objects": None}, "Objects has shape"),
        ({"images": {"top": shade(0, 0)}}, "No image of camera 'wrist'"),
        ({"images": {"top": shade(0, 0), "wrist": shade(0, 1)[:10]}}, "Camera 'wrist' gave uint8"),
    ],
)
def test_a_frame_that_does_not_fit_is_not_recorded(tmp_path: Path, changes, message):
    frame = {"images": {"top": shade(0, 0), "wrist": shade(0, 1)}, "state": [0, 0], "action": [0, 0]}
    with writer(tmp_path) as recorder:
        with pytest.raises(DatasetError, match=message):
            recorder.add_frame(**{**frame, "objects": np.zeros((2, 3)), **changes})
        assert recorder.episode_length == 0


def test_an_episode_that_says_nothing_is_not_saved(tmp_path: Path):
    with writer(tmp_path) as recorder:
        with pytest.raises(DatasetError, match="without frames"):
            recorder.save_episode("wait")
        add(recorder, 1)
        with pytest.raises(DatasetError, match="blank"):
            recorder.save_episode("  ")
        with pytest.raises(DatasetError, match=r"Targets \[2\]; expected at most 2 indices of"):
            recorder.save_episode("wait", [2])
        assert recorder.save_episode("wait") == 0


def test_wrong_folders_are_named(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"No file .*info\.json"):
        Dataset.open(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"holds notes\.txt but no"):
        writer(tmp_path)
    with pytest.raises(ConfigError, match="even"):
        writer(tmp_path / "odd", image_size=(31, 48))
    writer(tmp_path / "empty")
    with pytest.raises(DatasetError, match="No episode"):
        Dataset.open(tmp_path / "empty")


def test_other_features_are_not_appended(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 1)
    with pytest.raises(DatasetError, match=r"\[32, 48, 3\].*expected .*\[64, 64, 3\]"):
        writer(tmp_path, image_size=(64, 64))


def test_broken_files_are_named(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 2)
    info = tmp_path / "meta" / "info.json"
    content = info.read_text()
    info.write_text(content.replace("v3.0", "v2.1"))
    with pytest.raises(DatasetError, match=r"'v2\.1'; expected 'v3\.0'"):
        Dataset.open(tmp_path)
    info.write_text(content.replace('"total_episodes": 1', '"total_episodes": 2'))
    with pytest.raises(DatasetError, match="describes 1 episodes"):
        Dataset.open(tmp_path)
    info.write_text(content)
    data = tmp_path / layout.DATA_PATH.format(**layout.location(0))
    pq.write_table(pq.read_table(data).slice(1), data)
    with pytest.raises(DatasetError, match="1 frames that are not those"):
        Dataset.open(tmp_path)
    data.write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match="not a readable Parquet"):
        Dataset.open(tmp_path)


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path):
    file = tmp_path / "recording"
    file.write_text("not a folder")
    with pytest.raises(DatasetError, match=r"No file .*recording/meta/info.json; expected a LeRobotDataset"):
        Dataset.open(file)


def test_videos_without_their_path_are_named(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 2)
    info = tmp_path / "meta" / "info.json"
    values = json.loads(info.read_text())
    del values["video_path"]
    info.write_text(json.dumps(values))
    with pytest.raises(DatasetError, match=r"lacks \['video_path'\]"):
        Dataset.open(tmp_path)


def test_data_files_of_different_columns_are_named(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 2)
        record(recorder, 2)
    second = sorted((tmp_path / "data").rglob("*.parquet"))[1]
    pq.write_table(pq.read_table(second).drop_columns(["action"]), second)
    with pytest.raises(DatasetError, match="have different columns"):
        Dataset.open(tmp_path)
