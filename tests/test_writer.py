"""The writer's laws: what was saved stays, however the recording ended."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from recordings import add, as_v21, record, record_three, shade, writer

from pi0_control import files
from pi0_control.errors import ConfigError, DatasetError
from pi0_control.train.dataset import Dataset
from pi0_control.train.pictures import read_images
from pi0_control.train.video import VideoWriter
from pi0_control.train.writer import LOCK


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


def test_recording_goes_on_after_reopening(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 3)
        add(recorder, 2)  # never saved
    with writer(tmp_path) as recorder:
        assert record(recorder, 4, "lift the blue block", (1,)) == 1
    assert [episode.length for episode in Dataset.open(tmp_path).episodes] == [3, 4]
    assert not list(tmp_path.rglob("*" + files.PARTIAL))


def test_discarded_frames_leave_no_trace(tmp_path: Path):
    with writer(tmp_path) as recorder:
        add(recorder, 4)
        assert recorder.episode_length == 4
        recorder.discard_episode()
        assert recorder.episode_length == 0
        record(recorder, 2)
    assert len(Dataset.open(tmp_path)) == 2


def test_a_frame_that_was_written_in_part_spoils_its_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written, write = [], VideoWriter.write

    def full(video: VideoWriter, image: np.ndarray) -> None:
        written.append(image)
        if len(written) == 6:  # frame 2 in the second camera
            raise OSError(errno.ENOSPC, "No space left on device")
        write(video, image)

    monkeypatch.setattr(VideoWriter, "write", full)
    with writer(tmp_path) as recorder:
        with pytest.raises(OSError, match="No space left"):
            add(recorder, 4)
        with pytest.raises(DatasetError, match=r"Frame 2 of the episode could not be written in full; call discard"):
            add(recorder, 1, first=2)
        with pytest.raises(DatasetError, match=r"Frame 2 of the episode could not be written in full; call discard"):
            recorder.save_episode("push the red block", (0,))
        recorder.discard_episode()
        record(recorder, 3)
    episodes = Dataset.open(tmp_path).episodes
    assert [episode.length for episode in episodes] == [3]
    for slot, camera in enumerate(("top", "wrist")):
        for frame, image in read_images(episodes, camera, 20):
            np.testing.assert_allclose(image[8, 8], shade(frame, slot)[0, 0], atol=6)


def test_an_episode_is_discarded_where_nothing_can_be_written_any_more(tmp_path: Path):
    resource = pytest.importorskip("resource")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    with writer(tmp_path) as recorder:
        add(recorder, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, usual[1]))  # bytes of a file; as if the disk were full
        try:
            recorder.discard_episode()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        assert not list(tmp_path.rglob("*" + files.PARTIAL))
        record(recorder, 3)
    assert len(Dataset.open(tmp_path)) == 3


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

    monkeypatch.setattr(files.os, "replace", guarded(os.replace))
    monkeypatch.setattr(files.os, "fsync", guarded(os.fsync))


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
        (root / "meta" / LOCK).unlink(missing_ok=True)  # the dead hold none
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


def test_a_recording_without_objects(tmp_path: Path):
    with writer(tmp_path, object_names=()) as recorder:
        recorder.add_frame({"top": shade(0, 0), "wrist": shade(0, 1)}, [0, 0], [0, 0])
        recorder.save_episode("wait")
    dataset = Dataset.open(tmp_path)
    assert dataset.objects.shape == (1, 0, 3)
    assert dataset.targets.tolist() == [[-1, -1]]


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


def test_other_features_are_not_appended(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 1)
    with pytest.raises(DatasetError, match=r"\[32, 48, 3\].*expected .*\[64, 64, 3\]"):
        writer(tmp_path, image_size=(64, 64))


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


def test_folders_that_cannot_be_recorded_into_are_named(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"holds notes\.txt but no"):
        writer(tmp_path)
    with pytest.raises(ConfigError, match="even"):
        writer(tmp_path / "odd", image_size=(31, 48))
    as_v21(record_three(tmp_path / "old"))
    with pytest.raises(DatasetError, match=r"'v2\.1'; expected 'v3\.0'"):
        writer(tmp_path / "old")


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path):
    with writer(tmp_path) as first:
        with pytest.raises(DatasetError, match="is being recorded by another process"):
            writer(tmp_path)
        record(first, 2)
    with writer(tmp_path) as second:
        assert second.num_episodes == 1
