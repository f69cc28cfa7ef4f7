import re
import subprocess
import sys
from pathlib import Path

import pytest

import pi0_control

README = Path(__file__).parents[1] / "README.md"


def test_every_public_name_is_importable() -> None:
    assert sorted(pi0_control.__all__) == pi0_control.__all__
    assert all(getattr(pi0_control, name).__name__ == name for name in pi0_control.__all__)


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Agent'; it has ActionChunk"):
        _ = pi0_control.Agent


def test_sims_and_help_do_not_import_torch() -> None:
    code = "import sys, sims.tabletop_env, pi0_control.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_readme_example_runs(capsys) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert "Pi0Agent.from_pretrained" in example
    exec(compile(example, "README.md", "exec"), {})
    assert re.search(r"-> (success|failure)\n$", capsys.readouterr().out)


def test_readme_names_the_two_commands_of_the_makefile() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for command in ("demo", "test"):
        assert f"make {command}" in README.read_text()
        assert f"\n{command}:" in makefile
