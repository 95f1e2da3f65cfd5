"""svi models download, from a hub that runs in this process."""

import hashlib
import json
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import ClassVar

import pytest

from svi.backends import models_download
from svi.backends.models_download import download, wanted
from svi.errors import UserError

COMMIT = "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as its client needs: listings with hashes, and files with ranges."""

    files: ClassVar[dict[str, bytes]] = {}
    gated = False
    asked: ClassVar[list[tuple[str, str]]] = []
    broken: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            self.listing(path, body)
            return
        name = path.partition("/resolve/")[2].partition("/")[2]
        if self.gated:
            self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        if name not in self.files:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = self.files[name]
        self.asked.append((name, self.headers.get("Range", "")))
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
        status = 206 if int(start or 0) else 200
        if body and status == 200 and name in self.broken:
            self.broken.remove(name)
            data = data[: len(data) // 2]  # less than is announced: the line breaks
            headers["Content-Length"] = str(len(self.files[name]))
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.reply(status, data[int(start or 0) :], headers, body)

    def listing(self, path, body):
        info = {"_id": "1", "id": "some/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
        tree = [
            {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
            | {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}}
            for name, data in self.files.items()
        ]
        self.reply(
            200, json.dumps(tree if "/tree/" in path else info).encode(), {"Content-Type": "application/json"}, body
        )

    def reply(self, status, data, headers, body=True):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *words):
        pass


@contextmanager
def served(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one model of two files; the client's cache is in ``tmp_path``."""

    files = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40}
    Here = type("Here", (Hub,), {"files": files, "asked": [], "broken": []})

    with served(Here) as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield Here


def test_a_download_is_verified(hub, tmp_path):
    lines = []
    (folder,) = download("some/model", to=tmp_path / "m", say=lines.append)
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert any("verifying" in line for line in lines)
    before = len(hub.asked)
    download("some/model", to=tmp_path / "m")
    assert not any(name == "model.safetensors" and span for name, span in hub.asked[before:])


def test_a_broken_download_goes_on_where_it_stopped(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    hub.broken.append("model.safetensors")
    for _ in range(2):  # the client may go on by itself, or ask to be called again
        try:
            (folder,) = download("some/model", to=tmp_path / "m")
            break
        except UserError as error:
            assert "same command again" in str(error)  # noqa: PT017
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    half = len(hub.files["model.safetensors"]) // 2
    assert ("model.safetensors", f"bytes={half}-") in [
        (name, span[: len(f"bytes={half}-")]) for name, span in hub.asked
    ]


def test_a_changed_file_is_removed_and_told(hub, tmp_path):
    (folder,) = download("some/model", to=tmp_path / "m")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match=r"model\.safetensors is not what some/model has; removed"):
        download("some/model", to=tmp_path / "m")
    assert not path.exists()
    download("some/model", to=tmp_path / "m")
    assert path.read_bytes() == hub.files["model.safetensors"]


def test_a_gated_model_names_the_page_of_its_licence(hub, tmp_path):
    hub.gated = True
    with pytest.raises(UserError, match=r"accept.*hf auth login"):
        download("some/model", to=tmp_path / "m")


def test_too_little_room_is_told_before_anything_is_fetched(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5))
    with pytest.raises(UserError, match="GB free"):
        download("some/model", to=tmp_path / "m")


def test_a_hub_that_does_not_answer(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="give the same command again, it goes on where it stopped"):
        download("some/model", to=tmp_path / "m")


def test_names_that_download_knows():
    assert [item.hub_id for item in wanted("wan2.2-i2v-a14b", "official")] == ["Wan-AI/Wan2.2-I2V-A14B"]
    assert [item.lora for item in wanted("pro")] == [
        None,
        "SVI_Wan2.2-I2V-A14B_high_noise_lora_v2.0_pro",
        "SVI_Wan2.2-I2V-A14B_low_noise_lora_v2.0_pro",
    ]
    assert wanted("svi-film")[0].patterns == ("version-1.0/svi-film.safetensors",)
    assert wanted("Wan-AI/Wan2.2-TI2V-5B")[0].size_bytes > 30e9
    for name, message in (("pocket", "built in"), ("wan2.2-i2v-a14", "did you mean 'wan2.2-i2v-a14b'")):
        with pytest.raises(UserError, match=message):
            wanted(name)


def test_a_lora_goes_where_it_is_looked_for(hub, tmp_path, monkeypatch):
    hub.files = {"version-1.0/svi-film.safetensors": b"x" * 100}
    monkeypatch.setattr(models_download, "LORA_FOLDER", "loras")
    (path,) = download("svi-film", to=tmp_path / "weights")
    assert path == tmp_path / "weights" / "loras" / "svi-film.safetensors"
    assert path.read_bytes() == b"x" * 100
