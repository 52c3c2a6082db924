"""Pictures fetched from a real server on this machine: what is kept, tried again, refused."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

import pytest

from configs.errors import DataError
from data.remote import Downloads, is_url, shown

BODY = bytes(range(256)) * 20  # 5,120 bytes
Reply = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Answers each path by what `replies` holds for it, one after the other, the last for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.replies: dict[str, list[Reply]] = {}
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        replies = self.server.replies[self.path.partition("?")[0]]
        (replies.pop(0) if len(replies) > 1 else replies[0])(self)

    def log_message(self, *args: object) -> None:
        pass


def status(code: int, **headers: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return reply


def body(data: bytes = BODY, *, length: int | None = None, kind: str = "image/png") -> Reply:
    """Send `data` and tell its length, or another, or (0) none; then hang up."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        if length != 0:
            handler.send_header("Content-Length", str(length or len(data)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def slow(seconds: float) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        body()(handler)

    return reply


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True  # without a word


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def downloads(tmp_path: Path) -> Downloads:
    return Downloads(
        tmp_path / "pictures", 10_000, timeout_seconds=5, backoff_seconds=(0.01, 0.01, 0.01)
    )


def refused(downloads: Downloads, url: str) -> str:
    with pytest.raises(DataError) as caught:
        downloads.fetch(url)
    assert not downloads.folder.exists() or list(downloads.folder.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("reply", [body(), body(length=0)], ids=["length", "no length"])
def test_a_picture_is_fetched_once(server: Server, downloads: Downloads, reply: Reply) -> None:
    server.replies["/a.png"] = [reply]
    path = downloads.fetch(f"{server.url}/a.png?size=1")
    assert path.read_bytes() == BODY
    assert downloads.fetch(f"{server.url}/a.png?size=1") == path
    assert server.asked == ["/a.png?size=1"]
    assert list(downloads.folder.iterdir()) == [path]
    assert downloads.fetch(f"{server.url}/a.png?size=2") != path


def test_chunks(server: Server, downloads: Downloads) -> None:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in (BODY[:7], BODY[7:], b""):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))

    server.replies["/a.png"] = [reply]
    assert downloads.fetch(f"{server.url}/a.png").read_bytes() == BODY


def test_letters_that_are_no_ascii(server: Server, downloads: Downloads) -> None:
    server.replies["/caf%C3%A9%20%E4%B8%AD.png"] = [body()]
    assert downloads.fetch(f"{server.url}/café 中.png").read_bytes() == BODY
    assert downloads.fetch(f"{server.url}/caf%C3%A9%20%E4%B8%AD.png").read_bytes() == BODY


def test_what_is_not_there_is_asked_for_once(server: Server, downloads: Downloads) -> None:
    server.replies["/a.png"] = [status(404)]
    url = f"{server.url}/a.png"
    assert refused(downloads, f"{url}?key=secret#there") == (
        f"image {url!r} cannot be fetched: status 404 (Not Found)"
    )
    assert len(server.asked) == 1


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_in_trouble_is_asked_again(
    server: Server, downloads: Downloads, code: int
) -> None:
    server.replies["/a.png"] = [status(code), hang_up, body()]
    assert downloads.fetch(f"{server.url}/a.png").read_bytes() == BODY
    assert len(server.asked) == 3


def test_a_server_that_stays_in_trouble(server: Server, downloads: Downloads) -> None:
    server.replies = {"/a.png": [status(500)], "/b.png": [hang_up]}
    assert refused(downloads, f"{server.url}/a.png").endswith(
        "a.png' cannot be fetched: status 500 (Internal Server Error) (4 tries)"
    )
    assert refused(downloads, f"{server.url}/b.png").endswith(
        "b.png' cannot be fetched: the connection was lost (4 tries)"
    )
    assert len(server.asked) == 8


def test_waiting_grows_between_tries(server: Server, downloads: Downloads) -> None:
    server.replies["/a.png"] = [status(500)]
    start = time.monotonic()
    refused(replace(downloads, backoff_seconds=(0.02, 0.2)), f"{server.url}/a.png")
    assert time.monotonic() - start >= 0.22
    assert len(server.asked) == 3


def test_a_picture_that_breaks_off_is_not_kept(server: Server, downloads: Downloads) -> None:
    """`read1` ends there without a word; half a JPEG would be trained on as grey."""
    server.replies["/a.png"] = [body(BODY[:99], length=5120), body()]
    assert downloads.fetch(f"{server.url}/a.png").read_bytes() == BODY
    server.replies["/b.png"] = [body(BODY[:99], length=5120)]
    path = downloads.fetch(f"{server.url}/a.png")
    path.unlink()
    assert refused(downloads, f"{server.url}/b.png").endswith(
        "cannot be fetched: the connection ended after 99 of 5120 bytes (4 tries)"
    )


@pytest.mark.parametrize("length", [None, 0], ids=["length", "no length"])
def test_too_large(server: Server, downloads: Downloads, length: int | None) -> None:
    server.replies["/a.png"] = [body(length=length)]
    url = f"{server.url}/a.png"
    told = "5120" if length is None else "at least 5120"
    assert refused(replace(downloads, max_bytes=5119), url) == (
        f"image {url!r} has {told} bytes, more than data.max_image_bytes=5119"
    )
    assert len(server.asked) == 1
    assert replace(downloads, max_bytes=5120).fetch(url).read_bytes() == BODY


def test_what_never_ends_is_not_read_to_its_end(server: Server, downloads: Downloads) -> None:
    """A server that goes on sending: after a few chunks it is told to stop."""
    sent = []

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(1000):
                sent.append(handler.wfile.write(bytes(1 << 16)))
        except OSError:
            handler.close_connection = True

    server.replies["/a.png"] = [reply]
    assert " bytes, more than data.max_image_bytes=10000" in refused(
        downloads, f"{server.url}/a.png"
    )
    assert sum(sent) < 60 << 20  # of 62.5 MiB; what the sockets' buffers hold


def test_a_server_that_does_not_answer(server: Server, downloads: Downloads) -> None:
    server.replies = {"/a.png": [slow(0.3), body()], "/b.png": [slow(0.3)]}
    hasty = replace(downloads, timeout_seconds=0.05)
    assert refused(hasty, f"{server.url}/b.png").endswith(
        "b.png' cannot be fetched: no answer within 0.05 s (4 tries)"
    )
    assert hasty.fetch(f"{server.url}/a.png").read_bytes() == BODY


def test_a_server_that_drips(server: Server, downloads: Downloads) -> None:
    """Never silent for as long as the timeout, and never done."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "5120")
        handler.end_headers()
        try:
            for byte in BODY:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.005)
        except OSError:
            handler.close_connection = True

    server.replies["/a.png"] = [reply]
    assert refused(replace(downloads, timeout_seconds=0.02), f"{server.url}/a.png").endswith(
        "cannot be fetched: takes over 0.3 s"
    )


def test_a_redirect_is_followed(server: Server, downloads: Downloads) -> None:
    server.replies = {"/a.png": [status(302, Location="/b.png?x=1")], "/b.png": [body()]}
    assert downloads.fetch(f"{server.url}/a.png").read_bytes() == BODY
    assert server.asked == ["/a.png", "/b.png?x=1"]


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/a.png", "data:image/png;base64,AAAA"]
)
def test_a_redirect_away_from_http(server: Server, downloads: Downloads, target: str) -> None:
    server.replies["/a.png"] = [status(302, Location=target)]
    assert refused(downloads, f"{server.url}/a.png").endswith(
        "a.png' cannot be fetched: status 302 (Found), with no http(s) URL to go to or too many "
        "of them"
    )


def test_a_redirect_in_circles(server: Server, downloads: Downloads) -> None:
    server.replies["/a.png"] = [status(302, Location="/a.png")]
    assert "status 302 (Found)" in refused(downloads, f"{server.url}/a.png")
    assert len(server.asked) < 12


def test_a_web_page_in_place_of_a_picture(server: Server, downloads: Downloads) -> None:
    """Kept, it would be in the way when the picture is back."""
    server.replies["/a.png"] = [body(b"<html>gone</html>", kind="text/html; charset=utf-8")]
    assert refused(downloads, f"{server.url}/a.png").endswith(
        "cannot be fetched: a web page (text/html) is there, not a picture"
    )


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b.png", "s3://a/b", "/etc/passwd"])
def test_other_schemes(downloads: Downloads, url: str) -> None:
    assert refused(downloads, url) == f"image {url!r} is not an http or https URL"
    assert not is_url(url)


def test_what_a_message_shows_of_a_url(server: Server, downloads: Downloads) -> None:
    assert shown("https://me:pw@a.org:80/b/c.png?key=1#x") == "https://a.org:80/b/c.png"
    assert shown("http://a.org?k=me@b") == "http://a.org"
    assert refused(downloads, "http://me:pw@a.org/b.png") == (
        "image 'http://a.org/b.png' cannot be fetched: its URL names a user; download it and "
        "give its path"
    )
    server.replies["/a.png"] = [status(302, Location="http://me:pw@127.0.0.1/b.png")]
    message = refused(downloads, f"{server.url}/a.png")
    assert (
        message.endswith("a.png' cannot be fetched: the URL is not valid") and "pw" not in message
    )


def test_a_server_that_is_not_there(server: Server, downloads: Downloads) -> None:
    server.server_close()
    assert refused(downloads, f"{server.url}/a.png").endswith("fetched: Connection refused")
    for url in ("http://[/b.png", "http://a:b/c.png", "http://a/\ud800.png"):
        assert refused(downloads, url).endswith("cannot be fetched: the URL is not valid")


def test_a_full_disk_is_no_bad_row(server: Server, downloads: Downloads) -> None:
    """A row would be skipped; here writing fails, which is the machine's trouble."""
    server.replies["/a.png"] = [body()]
    downloads.folder.parent.mkdir(exist_ok=True)
    downloads.folder.write_bytes(b"in the way")
    with pytest.raises(FileExistsError):
        downloads.fetch(f"{server.url}/a.png")


def test_several_processes_fetch_one_url(server: Server, downloads: Downloads) -> None:
    server.replies["/a.png"] = [slow(0.2)]
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        paths = set(pool.map(downloads.fetch, [f"{server.url}/a.png"] * 3))
    (path,) = paths
    assert path.read_bytes() == BODY
    assert list(downloads.folder.iterdir()) == [path]
    assert len(server.asked) > 1  # they were at it together
