import pytest
from checkpoint_fuzz import attack


@pytest.mark.usefixtures("one_thread")
def test_mutated_checkpoints_end_in_a_sentence_or_a_load(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorstore", reason="the optional reader of orbax directories is not installed")
    attack(60, seed=1)
    assert "CheckpointError" in capsys.readouterr().out
