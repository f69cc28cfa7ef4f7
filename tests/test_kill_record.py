from pathlib import Path

from kill_record import kill_again_and_again


def test_a_killed_recording_loses_nothing_and_ends_as_if_it_had_never_been_killed(tmp_path: Path):
    counts, is_same = kill_again_and_again(tmp_path, episodes=60, kills=4, seed=0, longest_s=0.5, task=None)
    assert counts == sorted(counts)
    assert is_same
