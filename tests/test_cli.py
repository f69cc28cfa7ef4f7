import hashlib
import json
import subprocess
import sys

import pytest
from serving_parts import serving
from tiny_policy import tiny_policy

from pi0_control import cli
from pi0_control.cli.evaluate import EvalOptions, _contestants
from pi0_control.policy import HoldPolicy
from pi0_control.policy.pretrained import WEIGHTS_FILE
from pi0_control.robot import RobotSpec


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pi0_control.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_the_subcommands() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("eval", "inspect", "record", "train"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--policy", "expert", "--task", "Juggle"], "No task 'Juggle'; the tasks are Reach, Lift"),
        (["eval", "--policy", "nowhere/at/all"], "nowhere/at/all"),
        (["eval", "--policy", "expert", "--episodes", "0"], "--episodes is 0; expected 1 or more."),
        (["eval", "--policy", "expert", "--seed", "-1"], "--seed is -1; expected 0 or more."),
        (["eval", "--policy", "expert", "--parallel", "0"], "--parallel is 0; expected 1 or more."),
        (["eval", "--videos", "-1"], "--videos is -1; expected 0 or more."),
        (["eval", "--show", "--parallel", "2"], "--show watches one episode at a time; --parallel is 2."),
        (["eval", "--perturb", "fog"], "No suite 'fog'; the suites are none, camera, light"),
        (["eval", "--mask-cameras", "top"], "No camera 'top'; the cameras are base_0_rgb"),
        (["eval", "--instruction", "sung"], "No instruction 'sung'; expected one of original, swapped, shuffled."),
        (["eval", "--policy", "expert", "--mask-cameras", "all"], "expert neither reads nor looks"),
        (["eval", "--strategy", "sinc"], "No strategy 'sinc'; available: ['sync', 'async'"),
        (["eval", "--latency-steps", "2", "2"], "--latency-steps 2 2: expected at least one of each, none twice"),
        (["eval", "--latency-steps", "-1"], "and latencies of 0 or more."),
        (["eval", "--latency-steps", "0", "2", "--against", "expert"], "compare --policy with itself; --against and"),
        (["eval", "--policy", "expert", "--strategy", "async"], "expert has no chunks to play"),
        (["eval", "--policy", "expert", "--against", "expert"], "two have the same name, or would in a file"),
        (["eval", "--policy", "a/b", "--against", "a-b"], "two have the same name, or would in a file name: a/b, a-b."),
        (["eval", "--policy", "expert", "--task", "Reach", "--out", "/dev/null/x"], "/dev/null/x: Not a directory."),
        (["record", "--seed", "-1", "--out", "x"], "--seed is -1; expected 0 or more."),
        (["record", "--episodes", "0", "--out", "x"], "--episodes is 0; expected 1 or more."),
        (["record", "--task", "scenes", "Reach", "--out", "x"], "recorded alone"),
        (["record", "--mask-cameras", "left_wrist_0_rgb", "--out", "x"], "Only a pilot can lose cameras"),
        (["record", "--pilot", "mini", "--mask-cameras", "tail", "--out", "x"], "No camera 'tail'"),
        (["train", "--dataset", "nowhere", "--out", "x"], "nowhere"),
        (["inspect", "nowhere"], "No file nowhere/meta/info.json; expected a LeRobotDataset there."),
    ],
)
def test_user_mistakes_are_one_sentence_and_exit_2(arguments, message, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pi0", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_unknown_option_exits_with_2() -> None:
    done = run("eval", "--polcy", "mini")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_eval_writes_figures_videos_and_a_report(monkeypatch, capsys, tmp_path) -> None:
    out = tmp_path / "out"
    arguments = ["--task", "Reach", "--episodes", "2", "--perturb", "none", "all", "--against", "random"]
    monkeypatch.setattr(sys, "argv", ["pi0", "eval", "--policy", "expert", *arguments, "--out", str(out)])
    cli.main()
    printed = capsys.readouterr().out
    assert "expert: 2 episodes a task, seeds 100000 to 100001" in printed
    assert "100% (2/2)" in printed
    results = json.loads((out / "results.json").read_text())
    runs = {(run["policy"], run["suite"]): run for run in results["runs"]}
    assert list(runs) == [("expert", "none"), ("random", "none"), ("expert", "all"), ("random", "all")]
    assert runs["expert", "none"]["success_rate"] == 1.0
    assert [row["suite"] for row in results["comparisons"]] == ["none", "all"]
    assert "mujoco" in results["versions"]
    films = {key: run["episode_results"][0]["video"] for key, run in runs.items()}
    assert [key for key, film in films.items() if film is None] == [("random", "all")]
    assert all((out / film).is_file() for film in films.values() if film)
    assert (out / "report.html").stat().st_size > 10_000


def test_eval_names_a_control_as_such(monkeypatch, capsys, tmp_path) -> None:
    arguments = ["--task", "Reach", "--episodes", "1", "--videos", "0", "--instruction", "swapped"]
    monkeypatch.setattr(sys, "argv", ["pi0", "eval", "--policy", "expert", *arguments, "--out", str(tmp_path)])
    cli.main()
    printed = capsys.readouterr().out
    assert "CONTROL, expert [swapped instruction]: 1 episode a task" in printed
    assert "with either colour the block asked for was taken in 1 of 1 scenes" in printed
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["policy"], results["instruction"]) == ("expert [swapped instruction]", "swapped")
    assert results["swaps"][0]["obeyed"] == 1


@pytest.mark.usefixtures("one_thread")
def test_eval_of_a_learned_policy_tells_its_weights_and_its_control(monkeypatch, capsys, tmp_path) -> None:
    weights, out = tmp_path / "tiny" / WEIGHTS_FILE, tmp_path / "out"
    tiny_policy().save(weights.parent)
    controls = ["--instruction", "shuffled", "--mask-cameras", "left_wrist_0_rgb", "--parallel", "2"]
    arguments = ["--policy", str(weights.parent), "--task", "Reach", "--episodes", "1", "--videos", "0", *controls]
    monkeypatch.setattr(sys, "argv", ["pi0", "eval", *arguments, "--out", str(out)])
    cli.main()
    label = f"{weights.parent} [shuffled instruction, without left_wrist_0_rgb]"
    printed = " ".join(capsys.readouterr().out.split())
    assert f"CONTROL, {label}: 1 episode a task" in printed
    assert "success near 1/3 (Stack 1/6)" in printed
    results = json.loads((out / "results.json").read_text())
    assert results["checkpoint_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (results["policy"], results["mask_cameras"]) == (label, ["left_wrist_0_rgb"])
    (run,) = results["runs"]
    assert (run["policy"], run["episodes"], run["chunk_s"]) == (label, 1, {})
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<b>A control, not a result.</b>" in page
    assert "2 at a time, so no latency of one inference" in page


def test_a_swap_is_read_against_the_same_policy_with_the_same_cameras() -> None:
    options = EvalOptions(instruction="swapped", mask_cameras=("all",), against=("mini", "random"))
    labels = ["mini [swapped instruction, without cameras]", "mini [without cameras]", "mini", "random"]
    assert [setting.label for setting in _contestants(options)] == labels


@pytest.mark.usefixtures("one_thread")
def test_eval_plays_a_server_s_policy(monkeypatch, capsys, tmp_path) -> None:
    with serving(HoldPolicy(RobotSpec.from_yaml("arm6"))) as served:
        arguments = ["pi0", "eval", "--policy", served.url, "--task", "Reach", "--episodes", "1", "--videos", "0"]
        monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path)])
        cli.main()
        assert f"{served.url}: 1 episode a task" in capsys.readouterr().out
        assert json.loads((tmp_path / "results.json").read_text())["runs"][0]["episodes"] == 1
        monkeypatch.setattr(sys, "argv", [*arguments, "--mask-cameras", "all"])
        with pytest.raises(SystemExit):
            cli.main()
        assert "is a server's policy; --mask-cameras" in capsys.readouterr().err
