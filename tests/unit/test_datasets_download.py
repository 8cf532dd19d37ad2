"""Downloads from a server on this machine: resumed, checked, and failing in one line."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from purifiers.core import artifacts
from purifiers.core.artifacts import RunFolder
from purifiers.core.errors import UserError
from purifiers.datasets import _download
from purifiers.datasets._download import Remote, obtain

CONTENT = bytes(range(256)) * 4096  # 1 MiB
CHECKSUM = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
REMOTE = Remote("https://example.org/pub/set.bin", len(CONTENT), CHECKSUM)


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /pub/set.bin; what it may do wrong is set by the test."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.cut_after: list[int] = []  # bytes of the next answers, then whole ones
        self.ranges = True
        self.wait = threading.Event()
        self.wait.set()
        self.requests: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        self.server.wait.wait(10)
        if self.path != "/pub/set.bin":
            self.send_error(404)
            return
        start = 0
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut_after:
            body = body[: self.server.cut_after.pop(0)]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("PURIFYBENCH_MIRROR", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_arrives_whole_with_progress(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_download, "PROGRESS_SECONDS", 0.0)
    path = obtain(REMOTE, tmp_path / "deep" / "set.bin", "set.bin")
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["set.bin"]
    error = capsys.readouterr().err
    assert "set.bin: " in error and "bytes/s" in error and "left" in error


def test_a_file_that_is_there_is_only_verified(server, tmp_path):
    path = tmp_path / "set.bin"
    path.write_bytes(CONTENT)
    assert obtain(REMOTE, path, "set.bin") == path
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match="damaged or not the official file"):
        obtain(REMOTE, path, "set.bin")
    assert path.read_bytes() == b"mine" and server.requests == []


def test_a_cut_connection_is_continued_where_it_broke(server, tmp_path):
    server.cut_after = [300_000, 200_000]
    assert obtain(REMOTE, tmp_path / "set.bin", "set.bin").read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_call_resumes_the_partial_file(server, tmp_path):
    server.cut_after = [100_000] * _download.ATTEMPTS
    with pytest.raises(UserError, match=r"cut at 500000 of 1048576 bytes, run again to continue"):
        obtain(REMOTE, tmp_path / "set.bin", "set.bin")
    assert (tmp_path / "set.bin.partial").stat().st_size == 500_000
    server.requests.clear()
    assert obtain(REMOTE, tmp_path / "set.bin", "set.bin").read_bytes() == CONTENT
    assert server.requests == ["bytes=500000-"]
    assert not (tmp_path / "set.bin.partial").exists()


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "set.bin.partial").write_bytes(b"x" * 1000)
    assert obtain(REMOTE, tmp_path / "set.bin", "set.bin").read_bytes() == CONTENT


def test_a_partial_file_that_is_too_long_starts_again(server, tmp_path):
    (tmp_path / "set.bin.partial").write_bytes(CONTENT + b"x")
    assert obtain(REMOTE, tmp_path / "set.bin", "set.bin").read_bytes() == CONTENT
    assert server.requests == [None]


def test_a_wrong_checksum_leaves_nothing_and_can_be_tried_again(server, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    path = tmp_path / "set.bin"
    with pytest.raises(UserError, match="the bytes received do not have sha256:"):
        obtain(REMOTE, path, "set.bin")
    assert not path.exists()
    server.content = CONTENT
    assert obtain(REMOTE, path, "set.bin").read_bytes() == CONTENT


def test_more_bytes_than_expected_are_refused(server, tmp_path):
    server.content = CONTENT + b"more"
    with pytest.raises(UserError, match="more than the expected 1048576 bytes"):
        obtain(REMOTE, tmp_path / "set.bin", "set.bin")
    assert not (tmp_path / "set.bin").exists()


def test_an_http_error_says_everything_in_one_line(server, tmp_path):
    remote = Remote("https://example.org/pub/gone.bin", 10, CHECKSUM)
    with pytest.raises(UserError) as caught:
        obtain(remote, tmp_path / "gone.bin", "gone/ and gone.bin in the data folder")
    message = str(caught.value)
    assert "HTTP 404" in message and "\n" not in message
    assert "gone.bin is missing: looked for gone/ and gone.bin in the data folder" in message
    assert f"http://127.0.0.1:{server.server_port}/pub/gone.bin" in message
    assert f"set PURIFYBENCH_DATA or put the file at {tmp_path / 'gone.bin'}" in message


def test_no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("PURIFYBENCH_MIRROR", "http://127.0.0.1:9")  # the discard port
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UserError, match=r"no connection \(.*refused"):
        obtain(REMOTE, tmp_path / "set.bin", "set.bin")
    assert not (tmp_path / "set.bin").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk(server, tmp_path):
    (tmp_path / "set.bin.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="the disk is full"):
        obtain(REMOTE, tmp_path / "set.bin", "set.bin")


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="set PURIFYBENCH_DATA or put the file at"):
        obtain(REMOTE, tmp_path / "file" / "set.bin", "set.bin")


def test_two_that_want_the_same_file_download_it_once(server, tmp_path):
    server.wait.clear()
    path = tmp_path / "set.bin"
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(obtain(REMOTE, path, "").read_bytes()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    server.wait.set()
    for thread in threads:
        thread.join(20)
    assert results == [CONTENT] * 3 and server.requests == [None]
    assert [p.name for p in tmp_path.iterdir()] == ["set.bin"]


@pytest.mark.parametrize(
    "wrong",
    [
        *("mirror", "mirror:8080/data", "ftp://mirror/", "http://", "http:///data", "/data/mirror"),
        *("http://m:port/", "http://m:99999/", "http://my mirror/", "http://mirror/\n"),
    ],
)
def test_a_mirror_that_is_none(wrong, tmp_path, monkeypatch):
    monkeypatch.setenv("PURIFYBENCH_MIRROR", wrong)
    remote = Remote("https://example.org/data/file.bin", 4, "sha256:00")
    with pytest.raises(UserError, match=r"PURIFYBENCH_MIRROR is .*no URL: write http://") as error:
        obtain(remote, tmp_path / "new" / "file.bin", "nowhere")
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks(number, tmp_path, monkeypatch):
    """Neither a download nor a run goes on unlocked."""

    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(artifacts.fcntl, "flock", refuse)
    remote = Remote("https://example.org/data/file.bin", 4, "sha256:00")
    for act in (
        lambda: obtain(remote, tmp_path / "file.bin", "nowhere"),
        RunFolder(tmp_path, "attack", "x").lock().__enter__,
    ):
        with pytest.raises(UserError, match=r"no file locks \(.*-o flock") as error:
            act()
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_another_error_of_a_lock_is_no_users_mistake(tmp_path, monkeypatch):
    def fail(file, how):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(artifacts.fcntl, "flock", fail)
    with pytest.raises(OSError, match="input/output error"):
        RunFolder(tmp_path, "attack", "x").lock().__enter__()


def test_without_a_mirror_the_official_address_is_asked(monkeypatch):
    monkeypatch.delenv("PURIFYBENCH_MIRROR", raising=False)
    assert REMOTE.address() == "https://example.org/pub/set.bin"
    monkeypatch.setenv("PURIFYBENCH_MIRROR", "http://cache.example:8080/data/")
    assert REMOTE.address() == "http://cache.example:8080/data/pub/set.bin"
