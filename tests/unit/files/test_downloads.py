"""Downloads against a local server that misbehaves in each way we know."""

import hashlib
import http.server
import threading

import pytest

from wshare.errors import UserError
from wshare.files import downloads
from wshare.files.downloads import download

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"


class Server(http.server.ThreadingHTTPServer):
    """Gives the answers of a script, one a request, the last one again and again; counts requests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = [(200, CONTENT, len(CONTENT))]
        self.requests = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/weights-{SHA256[:8]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        script = self.server.script
        status, body, length = script[min(self.server.requests, len(script) - 1)]
        self.server.requests += 1
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fails(url, target, **options):
    """The one-line message of a download that fails; nothing but what was there before is left."""
    before = sorted(target.parent.glob("*"))
    with pytest.raises(UserError) as caught:
        download(url, target, **options)
    assert sorted(target.parent.glob("*")) == before
    message = str(caught.value)
    assert "\n" not in message
    assert url in message
    assert f"put it at {target}" in message
    assert "models.<name>.path" in message
    return message


@pytest.mark.parametrize("options", [{}, {"sha256": SHA256}, {"sha256": SHA256.upper()}, {"sha256_prefix": SHA256[:8]}])
def test_good_file(server, tmp_path, options):
    target = tmp_path / "new" / "weights.pth"
    assert download(server.url, target, **options) == target
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert server.requests == 1


@pytest.mark.parametrize("options", [{}, {"sha256": SHA256}, {"sha256_prefix": SHA256[:8]}])
def test_cached_file_needs_no_network(tmp_path, options):
    target = tmp_path / "weights.pth"
    target.write_bytes(CONTENT)
    assert download("http://nowhere.invalid/weights.pth", target, **options) == target


def test_bad_cached_file_is_replaced(server, tmp_path):
    target = tmp_path / "weights.pth"
    target.write_bytes(CONTENT[:-1])
    download(server.url, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT


def test_bad_cached_file_without_network_is_told(server, tmp_path):
    target = tmp_path / "weights.pth"
    target.write_bytes(b"mine")
    server.script = [(503, b"", 0)]
    message = fails(server.url, target, sha256=SHA256)
    assert f"the file there has another sha256 than {SHA256}" in message
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("key", ["sha256", "sha256_prefix"])
def test_wrong_hash_is_tried_again_then_told(server, tmp_path, key):
    expected = "0" * (64 if key == "sha256" else 8)
    message = fails(server.url, tmp_path / "weights.pth", **{key: expected})
    assert f"serves another file: expected sha256 {expected}, got {SHA256}" in message
    assert server.requests == 3


@pytest.mark.parametrize("options", [{}, {"sha256": SHA256}])
def test_page_instead_of_file(server, tmp_path, options):
    server.script = [(200, PAGE, len(PAGE))]
    assert "an HTML page" in fails(server.url, tmp_path / "weights.pth", **options)


def test_missing_file_is_not_tried_again(server, tmp_path):
    server.script = [(404, PAGE, len(PAGE))]
    assert "HTTP status 404" in fails(server.url, tmp_path / "weights.pth", sha256=SHA256)
    assert server.requests == 1


@pytest.mark.parametrize("status", [500, 503, 429])
def test_busy_server_is_tried_again(server, tmp_path, status):
    server.script = [(status, b"", 0)]
    assert f"HTTP status {status}" in fails(server.url, tmp_path / "weights.pth", tries=2)
    assert server.requests == 2


@pytest.mark.parametrize("first", [(500, b"", 0), (200, CONTENT[:1000], len(CONTENT)), (200, PAGE, len(PAGE))])
def test_flaky_first_try(server, tmp_path, first):
    server.script = [first, (200, CONTENT, len(CONTENT))]
    download(server.url, tmp_path / "weights.pth", sha256=SHA256)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert server.requests == 2


def test_half_a_file_without_a_hash(server, tmp_path):
    server.script = [(200, CONTENT[:1000], len(CONTENT))]
    message = fails(server.url, tmp_path / "weights.pth")
    assert f"broke off after 1000 of {len(CONTENT)} bytes" in message


def test_unknown_length(server, tmp_path):
    server.script = [(200, CONTENT, None)]
    download(server.url, tmp_path / "weights.pth", sha256=SHA256)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_refused_connection(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0.0)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/weights.pth"
    assert "cannot be reached" in fails(url, tmp_path / "weights.pth")


def test_silent_server(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0.0)
    # It listens, and so accepts, but never answers.
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as silent:
        url = f"http://127.0.0.1:{silent.server_port}/weights.pth"
        assert "timed out" in fails(url, tmp_path / "weights.pth", tries=1, timeout=0.2)


def test_waits_longer_each_time(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 1.0)
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    server.script = [(500, b"", 0)]
    fails(server.url, tmp_path / "weights.pth", tries=4)
    assert waits == [1.0, 2.0, 4.0]
