import json
import subprocess
import sys

import pytest

from pi0_control import cli


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pi0_control.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_the_subcommands() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("eval", "record", "train"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--policy", "expert", "--task", "Juggle"], "No task 'Juggle'; the tasks are Reach, Lift"),
        (["eval", "--policy", "nowhere/at/all"], "nowhere/at/all"),
        (["eval", "--policy", "expert", "--episodes", "0"], "--episodes is 0; expected 1 or more."),
        (["eval", "--policy", "expert", "--seed", "-1"], "--seed is -1; expected 0 or more."),
        (["eval", "--policy", "expert", "--task", "Reach", "--out", "/dev/null/x"], "/dev/null/x: Not a directory."),
        (["record", "--seed", "-1", "--out", "x"], "--seed is -1; expected 0 or more."),
        (["record", "--episodes", "0", "--out", "x"], "--episodes is 0; expected 1 or more."),
        (["record", "--task", "scenes", "Reach", "--out", "x"], "recorded alone"),
        (["train", "--dataset", "nowhere", "--out", "x"], "nowhere"),
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


def test_eval_writes_figures_and_a_video(monkeypatch, capsys, tmp_path) -> None:
    out = tmp_path / "out"
    arguments = ["pi0", "eval", "--policy", "expert", "--task", "Reach", "--episodes", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    cli.main()
    assert "100% (2/2)" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["tasks"]["Reach"]["success_rate"] == 1.0
    assert "mujoco" in results["versions"]
    assert (out / "Reach.mp4").is_file()
