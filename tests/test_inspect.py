from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recordings import LAYOUTS, record_three

from pi0_control.cli.inspect import inspect


@pytest.mark.parametrize(("name", "version"), [("as_written", "v3.0"), ("v2.1_pictures", "v2.1")])
def test_inspect_tells_what_is_there_and_draws_it(tmp_path: Path, monkeypatch, capsys, name, version):
    monkeypatch.chdir(tmp_path)
    LAYOUTS[name](record_three(tmp_path / "demos"))
    inspect(Path("demos"))
    printed = capsys.readouterr().out
    for text in (f"LeRobotDataset {version}", "two_joints", "3 episodes", "9 frames", "at 20 fps", "task 4", "swing"):
        assert text in printed
    assert "! observation.state grip: constant." in printed
    assert "every image is of one plain colour" in printed
    assert "Contact sheet: outputs/inspect/demos.png" in printed
    assert np.asarray(Image.open("outputs/inspect/demos.png")).ndim == 3
