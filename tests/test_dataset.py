"""The dataset's laws: what was saved is read back from every layout; what does not fit is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import LAYOUTS, OBJECTS, ROBOT, as_v21, packed, record, record_three, shade, writer

from pi0_control.errors import DatasetError
from pi0_control.train import layout
from pi0_control.train.dataset import Dataset


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


@pytest.mark.parametrize("rewrite", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_reads_the_same(tmp_path: Path, rewrite):
    before = Dataset.open(record_three(tmp_path))
    rewrite(tmp_path)
    after = Dataset.open(tmp_path)
    for name in ("states", "actions", "objects", "targets", "timestamps", "task_index", "episode_index"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert (after.tasks, after.cameras, after.fps) == (before.tasks, before.cameras, before.fps)
    assert [(e.start, e.length) for e in after.episodes] == [(0, 4), (4, 2), (6, 3)]


def change_info(root: Path, change: Callable[[dict], None]) -> None:
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def test_states_and_actions_under_openpis_names(tmp_path: Path):
    before = Dataset.open(record_three(tmp_path))
    for file in tmp_path.glob("data/*/*.parquet"):
        pq.write_table(pq.read_table(file).rename_columns({"observation.state": "state", "action": "actions"}), file)

    def rename(info: dict) -> None:
        features = info["features"]
        features |= {"state": features.pop("observation.state"), "actions": features.pop("action")}

    change_info(tmp_path, rename)
    after = Dataset.open(tmp_path)
    np.testing.assert_array_equal(after.states, before.states)
    np.testing.assert_array_equal(after.actions, before.actions)
    assert after.features["action"]["names"] == ["swing", "grip"]


def test_a_dataset_without_states_tells_what_it_has(tmp_path: Path):
    record_three(tmp_path)
    change_info(tmp_path, lambda info: info["features"].pop("observation.state"))
    with pytest.raises(DatasetError, match=r"No feature 'observation\.state' nor 'state'; .* \['action', "):
        Dataset.open(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["swing", "grip"], ("swing", "grip")),
        ({"motors": ["swing", "grip"]}, ("swing", "grip")),
        ({"arm": {"joints": ["swing"]}, "hand": "grip"}, ("swing", "grip")),
        (["state"], ()),  # one name for all of them
        (None, ()),
    ],
)
def test_joint_names_in_whatever_nest(names, expected):
    assert layout.joint_names_of({"action": {"shape": [2], "names": names}}, "action") == expected


def test_depth_maps_are_no_cameras():
    features = {
        "observation.images.top": {"dtype": "video", "shape": [32, 48, 3], "info": {"video.is_depth_map": False}},
        "observation.images.depth": {"dtype": "video", "shape": [32, 48, 3], "info": {"is_depth_map": True}},
        "wrist_image": {"dtype": "image", "shape": [32, 48, 3]},
    }
    assert layout.cameras_of(features) == {"top": "observation.images.top", "wrist_image": "wrist_image"}


def test_numbers_that_are_not_finite_are_read_only_when_asked_for(tmp_path: Path):
    record_three(tmp_path)
    data = sorted(tmp_path.glob("data/*/*.parquet"))[0]
    table = pq.read_table(data)
    broken = pa.FixedSizeListArray.from_arrays(pa.array([np.nan, 1.0] * 4, pa.float32()), 2)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", broken), data)
    with pytest.raises(DatasetError, match="not finite"):
        Dataset.open(tmp_path)
    assert np.isnan(Dataset.open(tmp_path, require_finite=False).actions[:4, 0]).all()


def test_the_same_root_is_not_read_twice(tmp_path: Path):
    record_three(tmp_path)
    with pytest.raises(DatasetError, match="given twice"):
        Dataset.open([tmp_path, tmp_path / "."])


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


def test_the_order_of_cameras_does_not_matter_but_all_have_them(tmp_path: Path):
    for name, cameras in (("a", ("top", "wrist")), ("b", ("wrist", "top")), ("c", ("top", "wrist", "side"))):
        with writer(tmp_path / name, robot=replace(ROBOT, cameras=cameras)) as recorder:
            recorder.add_frame({camera: shade(0, 0) for camera in cameras}, [0, 0.5], [0, 1.0], np.zeros((2, 3)))
            recorder.save_episode("wait")
    dataset = Dataset.open([tmp_path / "a", tmp_path / "b"])
    assert dataset.cameras == ("top", "wrist")
    assert all("observation.images.top" in str(episode.images["top"].path) for episode in dataset.episodes)
    for roots in (["a", "c"], ["c", "a"]):
        with pytest.raises(DatasetError, match=r"\['side'\] are in one of them only"):
            Dataset.open([tmp_path / root for root in roots])


def test_roots_of_other_joints_do_not_mix(tmp_path: Path):
    swapped = replace(ROBOT, joints=ROBOT.joints[::-1])
    for name, robot in (("a", ROBOT), ("b", swapped)):
        with writer(tmp_path / name, robot=robot) as recorder:
            record(recorder, 2)
    with pytest.raises(DatasetError, match=r"\['grip', 'swing'\], others \['swing', 'grip'\]"):
        Dataset.open([tmp_path / "a", tmp_path / "b"])


def test_chunks_repeat_the_last_action_behind_the_end_of_the_episode(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 4)
        record(recorder, 3)
    actions, is_pad = Dataset.open(tmp_path).action_chunks([0, 2, 6], horizon=3)
    np.testing.assert_array_equal(actions[..., 0] - 0.25, [[0, 1, 2], [2, 3, 3], [2, 2, 2]])
    np.testing.assert_array_equal(is_pad, [[False] * 3, [False, False, True], [False, True, True]])


def test_wrong_folders_are_named(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"No file .*info\.json"):
        Dataset.open(tmp_path)
    writer(tmp_path / "empty")
    with pytest.raises(DatasetError, match="No episode"):
        Dataset.open(tmp_path / "empty")


def test_broken_files_are_named(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 2)
    info = tmp_path / "meta" / "info.json"
    content = info.read_text()
    info.write_text(content.replace("v3.0", "v1.6"))
    with pytest.raises(DatasetError, match=r"'v1\.6'; expected 'v2\.0' or 'v2\.1' or 'v3\.0'"):
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
    change_info(tmp_path, lambda info: info.pop("video_path"))
    with pytest.raises(DatasetError, match=r"lacks \['video_path'\]"):
        Dataset.open(tmp_path)


def test_data_files_of_different_columns_are_named(tmp_path: Path):
    with writer(tmp_path) as recorder:
        record(recorder, 2)
        record(recorder, 2)
    second = sorted((tmp_path / "data").rglob("*.parquet"))[1]
    pq.write_table(pq.read_table(second).drop_columns(["action"]), second)
    with pytest.raises(DatasetError, match=r"have different columns: \['action'\] are not in all of them"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 2), pa.large_list(pa.float64())])
def test_data_files_may_have_their_numbers_in_lists_of_other_types(tmp_path: Path, kind: pa.DataType):
    packed(record_three(tmp_path))
    expected = Dataset.open(tmp_path)
    file = sorted((tmp_path / "data").rglob("*.parquet"))[0]
    table = pq.read_table(file)
    for name in ("observation.state", "action"):
        index = table.column_names.index(name)
        table = table.set_column(index, name, pa.array(table[name].to_pylist(), kind))
    pq.write_table(table, file)
    got = Dataset.open(tmp_path)
    np.testing.assert_array_equal(got.states, expected.states)
    np.testing.assert_array_equal(got.actions, expected.actions)


def test_data_files_of_types_that_do_not_go_together_are_named(tmp_path: Path):
    packed(record_three(tmp_path))
    file = sorted((tmp_path / "data").rglob("*.parquet"))[0]
    table = pq.read_table(file)
    index = table.column_names.index("action")
    pq.write_table(table.set_column(index, "action", pa.array(["none"] * len(table))), file)
    with pytest.raises(DatasetError, match="have different columns"):
        Dataset.open(tmp_path)


def test_broken_lines_of_v21_are_named(tmp_path: Path):
    as_v21(record_three(tmp_path))
    episodes = tmp_path / "meta" / "episodes.jsonl"
    lines = episodes.read_text()
    episodes.write_text(lines[:-10])
    with pytest.raises(DatasetError, match=r"episodes\.jsonl is not one JSON object per line"):
        Dataset.open(tmp_path)
    episodes.write_text("".join(lines.splitlines(keepends=True)[:2]))
    with pytest.raises(DatasetError, match=r"describes 2 episodes; its info\.json counts 3"):
        Dataset.open(tmp_path)
    episodes.write_text('{"episode_index": 0}\n')
    with pytest.raises(DatasetError, match="expected an object with episode_index and length"):
        Dataset.open(tmp_path)
    episodes.unlink()
    with pytest.raises(DatasetError, match=r"No file .*episodes\.jsonl"):
        Dataset.open(tmp_path)
