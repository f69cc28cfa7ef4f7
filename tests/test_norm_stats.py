import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pi0_control.errors import CheckpointError, ConfigError, DatasetError
from pi0_control.policy.norm_stats import LEROBOT_EPS, NormKind, NormRule, NormStats, RunningStats, VectorStats

STATS = VectorStats(
    mean=np.array([1.0, -2.0, 0.0]),
    std=np.array([0.5, 2.0, 0.0]),
    q01=np.array([0.0, -6.0, 0.0]),
    q99=np.array([2.0, 2.0, 0.0]),
    min=np.array([-1.0, -8.0, 0.0]),
    max=np.array([3.0, 2.0, 0.0]),
)
KINDS: list[NormKind] = ["z_score", "quantile", "min_max"]
RULES: list[NormRule] = ["openpi", "lerobot"]


def test_z_score_formula() -> None:
    eps = 0.5
    np.testing.assert_allclose(STATS.normalize([2.0, -2.0, 1.0], "z_score", eps), [1.0, 0.0, 2.0])
    np.testing.assert_allclose(STATS.unnormalize([1.0, 0.0, 2.0], "z_score", eps), [2.0, -2.0, 1.0])


def test_quantile_formula() -> None:
    np.testing.assert_allclose(STATS.normalize([0.0, 2.0], "quantile", 0.0), [-1.0, 1.0])
    np.testing.assert_allclose(STATS.normalize([0.0, 2.0, 0.5], "quantile", 2.0), [-1.0, 0.6, -0.5], atol=1e-6)
    np.testing.assert_allclose(STATS.unnormalize([-1.0, 1.0], "quantile", 0.0), [0.0, 2.0])


def test_min_max_formula() -> None:
    np.testing.assert_allclose(STATS.normalize([-1.0, 2.0], "min_max", 0.0), [-1.0, 1.0])
    np.testing.assert_allclose(STATS.normalize([1.0, 2.0], "min_max", 2.0), [-1 / 3, 2 / 3], atol=1e-6)


def test_lerobot_has_eps_in_place_of_a_span_of_zero_and_beside_std_one_way() -> None:
    eps = 0.5
    np.testing.assert_allclose(STATS.normalize([2.0, -2.0, 1.0], "z_score", eps, "lerobot"), [1.0, 0.0, 2.0])
    np.testing.assert_allclose(STATS.unnormalize([1.0, 0.0, 2.0], "z_score", eps, "lerobot"), [1.5, -2.0, 0.0])
    for kind in KINDS[1:]:
        np.testing.assert_allclose(STATS.normalize([1.0, 2.0, 0.25], kind, eps, "lerobot"), [0.0, 1.0, 0.0])
        np.testing.assert_allclose(STATS.unnormalize([1.0, 1.0, 1.0], kind, eps, "lerobot")[1:], [2.0, 0.5])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=50)
@given(values=arrays(np.float32, (4, 2), elements=st.floats(-100, 100, width=32)))
def test_unnormalize_inverts_normalize(kind: NormKind, rule: NormRule, values: np.ndarray) -> None:
    eps = LEROBOT_EPS if rule == "lerobot" else 1e-6
    there = STATS.normalize(values, kind, eps, rule)
    assert there.dtype == np.float32
    np.testing.assert_allclose(STATS.unnormalize(there, kind, eps, rule), values, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_clipped(kind: NormKind) -> None:
    assert STATS.normalize([100.0, 0.0, 0.0], kind)[0] > 40


@pytest.mark.parametrize("kind", KINDS)
def test_entries_without_statistics_pass_through(kind: NormKind) -> None:
    values = np.array([1.0, 2.0, 0.0, 7.0, -8.0])
    for result in (STATS.normalize(values, kind), STATS.unnormalize(values, kind)):
        assert result.shape == (5,)
        assert result[3:].tolist() == [7.0, -8.0]


@pytest.mark.parametrize("kind", KINDS)
def test_longer_statistics_are_cut(kind: NormKind) -> None:
    values = np.array([1.0, 2.0])
    np.testing.assert_array_equal(STATS.normalize(values, kind), STATS.normalize([1.0, 2.0, 0.0], kind)[:2])


def test_quantile_needs_quantiles_and_the_kind_must_exist() -> None:
    with pytest.raises(ConfigError, match="q01"):
        VectorStats(np.zeros(2), np.ones(2)).normalize([0.0, 0.0], "quantile")
    with pytest.raises(ConfigError, match="needs min and max; there are only"):
        VectorStats(np.zeros(2), np.ones(2), np.zeros(2), np.ones(2)).normalize([0.0, 0.0], "min_max")
    with pytest.raises(ConfigError, match="Unknown normalisation 'median'"):
        STATS.normalize([0.0], "median")  # type: ignore[arg-type]


def test_running_statistics_match_those_of_all_values_at_once() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal([0.0, 5.0, -1.0], [1.0, 0.1, 30.0], (4000, 3))
    running = RunningStats(3)
    for part in np.split(values, [1, 10, 500, 2500]):
        running.update(part)
    stats = running.result()
    np.testing.assert_allclose(stats.mean, values.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(stats.std, values.std(axis=0), rtol=1e-9)
    bin_width = np.ptp(values, axis=0) / 5000
    for share, quantile in ((0.01, stats.q01), (0.99, stats.q99)):
        exact = np.quantile(values, share, axis=0, method="inverted_cdf")
        assert (np.abs(quantile - exact) <= 2 * bin_width).all()


def test_chunks_of_actions_count_every_step() -> None:
    running = RunningStats(2)
    running.update(np.arange(24.0).reshape(3, 4, 2))
    assert running.count == 12
    np.testing.assert_allclose(running.result().mean, [11.0, 12.0])


def test_a_constant_entry_has_zero_spread() -> None:
    running = RunningStats(1)
    running.update(np.full((10, 1), 0.25))
    running.update(np.full((10, 1), 0.25))
    stats = running.result()
    assert (stats.mean, stats.std, stats.q01, stats.q99) == (0.25, 0.0, 0.25, 0.25)


def test_values_of_another_width_or_not_finite_are_refused() -> None:
    running = RunningStats(2)
    for bad in (np.zeros((4, 3)), np.array([[0.0, np.nan]])):
        with pytest.raises(DatasetError, match="expected finite"):
            running.update(bad)
    with pytest.raises(DatasetError, match="No values"):
        running.result()


def test_file_round_trip_is_exact(tmp_path: Path) -> None:
    original = NormStats(STATS, VectorStats(np.array([1 / 3]), np.array([np.pi])))
    original.save(tmp_path / "norm_stats.json")
    loaded = NormStats.load(tmp_path / "norm_stats.json")
    np.testing.assert_array_equal(loaded.state.q01, STATS.q01)
    np.testing.assert_array_equal(loaded.actions.mean, original.actions.mean)
    assert loaded.actions.q01 is None


def test_min_and_max_are_written_only_where_known(tmp_path: Path) -> None:
    path = tmp_path / "norm_stats.json"
    NormStats(STATS, VectorStats(np.zeros(1), np.ones(1))).save(path)
    groups = json.loads(path.read_text())["norm_stats"]
    assert groups["state"]["max"] == [3.0, 2.0, 0.0]
    assert groups["actions"] == {"mean": [0.0], "std": [1.0], "q01": None, "q99": None}


def test_lerobot_s_tensors_round_trip() -> None:
    tensors = NormStats(STATS, VectorStats(np.zeros(1), np.ones(1))).to_lerobot()
    assert sorted(tensors) == [
        "action.mean",
        "action.std",
        *(f"observation.state.{name}" for name in ("max", "mean", "min", "q01", "q99", "std")),
    ]
    again = NormStats.from_lerobot({**tensors, "action.count": np.array([7]), "observation.images.top.mean": [1]})
    assert {name: value.tolist() for name, value in again.to_lerobot().items()} == {
        name: value.tolist() for name, value in tensors.items()
    }
    with pytest.raises(CheckpointError, match=r"processor: action has \[\]; expected mean, std"):
        NormStats.from_lerobot({"observation.state.mean": [0], "observation.state.std": [1]}, "processor")


def test_openpi_layout_is_read(tmp_path: Path) -> None:
    group = {"mean": [0.0], "std": [1.0], "q01": None, "q99": None}
    path = tmp_path / "norm_stats.json"
    path.write_text(json.dumps({"norm_stats": {"state": group, "actions": {"mean": [2.0], "std": [1.0]}}}))
    assert NormStats.load(path).actions.mean == 2.0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected state and actions"),
        ('{"norm_stats": {"state": {"mean": [0], "std": [1]}}}', "expected state and actions"),
        ('{"norm_stats": {"state": {"mean": [0]}, "actions": {"mean": [0], "std": [1]}}}', "mean, std"),
        ('{"norm_stats": {"state": {"mean": [0, 1], "std": [1]}, "actions": {}}}', "one length"),
        ('{"norm_stats": {"state": {"mean": [NaN], "std": [1]}, "actions": {}}}', "finite"),
        ('{"norm_stats": {"state": {"mean": ["a"], "std": [1]}, "actions": {}}}', "numbers"),
        ('{"norm_stats": {"state": {"mean": [0], "std": null}, "actions": {}}}', "no std"),
        ('{"norm_stats": {"state": {"mean": [0], "std": [-1]}, "actions": {}}}', "negative"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "norm_stats.json").write_text(content)
    with pytest.raises(CheckpointError, match=words):
        NormStats.load(tmp_path / "norm_stats.json")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No statistics file"):
        NormStats.load(tmp_path / "norm_stats.json")
