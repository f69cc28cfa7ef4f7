"""Names on the Hugging Face hub, against a hub on this machine: only weights and JSON are fetched, and kept."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import golden_directory

from pi0_control.errors import ConfigError
from pi0_control.model.checkpoints import locate, open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as serves the files of a folder as the repository lab/pi0."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/api/models/lab/pi0/"):
            names = [{"rfilename": path.name} for path in sorted(self.folder.iterdir())]
            siblings = {"id": "lab/pi0", "sha": COMMIT, "siblings": names, "private": False, "tags": [], "downloads": 0}
            tree = [{"type": "file", "path": each["rfilename"], "size": 1, "oid": "0" * 40} for each in names]
            self._answer(json.dumps(tree if "/tree/" in self.path else siblings).encode(), "application/json")
        elif self.path.startswith(f"/lab/pi0/resolve/{COMMIT}/"):
            self._answer((self.folder / self.path.rpartition("/")[2]).read_bytes(), "application/octet-stream")
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(content):x}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of the hub."""
    pytest.importorskip("huggingface_hub", reason="the optional client of the hub is not installed")
    Hub.folder, Hub.asked = golden_directory(tmp_path / "served", "pi0"), []
    (Hub.folder / "config.json").write_text("{}")
    (Hub.folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (Hub.folder / "modeling.py").write_text("code")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def located(names: list[str], cache: Path, **environment: str) -> list[str]:
    """Where each name was found, or the message, by a process of its own: the client reads its settings only once."""
    script = """
import sys
from pi0_control.errors import CheckpointError
from pi0_control.model.checkpoints import locate

for name in sys.argv[1:]:
    try:
        print(locate(name))
    except CheckpointError as error:
        print(error)
"""
    settings = {"HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *names],
        env={**os.environ, **settings, **environment},
        cwd=cache.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_weights_and_json_are_fetched_once_and_nothing_else(hub: str, tmp_path: Path) -> None:
    found, refused = located(["lab/pi0", "lab/other"], tmp_path / "cache", HF_ENDPOINT=hub)
    assert {path.name for path in Path(found).iterdir()} == {"model.safetensors", "config.json"}
    assert open_checkpoint(found).format == "openpi_torch"
    assert not any(name.endswith((".bin", ".py")) for name in Hub.asked)
    assert refused.startswith("There is no directory lab/other, and it cannot be fetched from the Hugging Face hub: ")
    offline = located(["lab/pi0", "lab/other"], tmp_path / "cache", HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert offline[0] == found
    assert offline[1].startswith("There is no directory lab/other, and it cannot be fetched")


def test_no_network_is_one_sentence(hub: str, tmp_path: Path) -> None:
    (said,) = located(["lab/pi0"], tmp_path / "cache", HF_ENDPOINT="http://127.0.0.1:9")
    assert said.startswith("There is no directory lab/pi0, and it cannot be fetched from the Hugging Face hub: ")


def test_directories_and_what_is_no_name_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab" / "pi0").mkdir(parents=True)
    for name in ("lab/pi0", "mini", "a/b/c", "/lab/x", "./lab", "../lab", "lab/"):
        assert locate(name) == Path(name)
    with pytest.raises(ConfigError, match=r"no directory lab/other; .* pip install 'pi0-control\[hub\]'"):
        locate("lab/other")
