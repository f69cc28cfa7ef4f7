"""The log's laws: the lines are the truth, the curves say the same, and neither a crash nor a resume spoils them."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from pi0_control import files
from pi0_control.train.log import TrainLog

STAGES = ["grounding", "policy"]


def entries(log: TrainLog) -> list[dict]:
    return [json.loads(line) for line in log.file.read_text().splitlines()]


def curves(log: TrainLog) -> dict[str, list[tuple[int, float]]]:
    """Every point of every event file."""
    points = defaultdict(list)
    for file in sorted(log.events.iterdir()):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                points[value.tag].append((event.step, value.tensor.float_val[0]))
    return points


def write(log: TrainLog, steps: range, loss: float) -> None:
    for step in steps:
        log.add("policy", step, {"loss": loss, "learning_rate": 0.5})
        log.add("policy", step, {"validation": {"flow_loss": 2.0}})


def test_the_curves_are_the_numbers_of_the_lines(tmp_path: Path):
    log = TrainLog(tmp_path)
    log.start(STAGES, 0, 0)
    log.add("grounding", 5, {"loss": 3.0})
    write(log, range(1, 3), loss=1.0)
    log.close()
    assert [(entry["stage"], entry["step"]) for entry in entries(log)[:2]] == [("grounding", 5), ("policy", 1)]
    assert curves(log) == {
        "grounding/loss": [(5, 3.0)],
        "policy/loss": [(1, 1.0), (2, 1.0)],
        "policy/learning_rate": [(1, 0.5), (2, 0.5)],
        "policy/validation/flow_loss": [(1, 2.0), (2, 2.0)],
    }


@pytest.mark.parametrize("tail", ["", '{"stage": "pol', '{"stage": "policy", "step": 2}\n{"sta'])
def test_a_resumed_log_has_neither_gaps_nor_steps_twice(tmp_path: Path, tail: str):
    torn = TrainLog(tmp_path)
    torn.start(STAGES, 0, 0)
    write(torn, range(1, 5), loss=1.0)  # the process ends here, without close()
    torn.file.write_text(torn.file.read_text() + tail)
    for file in torn.events.iterdir():
        file.write_bytes(file.read_bytes()[:-7])

    resumed = TrainLog(tmp_path)
    resumed.start(STAGES, 1, 2)
    write(resumed, range(3, 5), loss=9.0)
    resumed.close()
    assert [entry["loss"] for entry in entries(resumed) if "loss" in entry] == [1.0, 1.0, 9.0, 9.0]
    assert curves(resumed)["policy/loss"] == [(1, 1.0), (2, 1.0), (3, 9.0), (4, 9.0)]
    assert not list(tmp_path.glob(f"*{files.PARTIAL}"))


def test_a_new_run_forgets_one_that_ended_before_its_first_checkpoint(tmp_path: Path):
    log = TrainLog(tmp_path)
    log.start(["another", "policy"], 0, 0)
    write(log, range(1, 3), loss=1.0)
    log.add("another", 1, {"loss": 1.0})
    log.start(STAGES, 0, 0)
    assert not entries(log)
    assert not curves(log)


def test_a_process_beside_the_main_one_writes_nothing(tmp_path: Path):
    log = TrainLog(tmp_path, writes=False)
    log.start(STAGES, 0, 0)
    write(log, range(1, 3), loss=1.0)
    log.close()
    assert not list(tmp_path.iterdir())
