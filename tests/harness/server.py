"""A real HTTP server on loopback that answers as told and remembers what it was asked."""

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit


class Request(NamedTuple):
    """What was asked; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]


class Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Listener"

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.owner._answer(self, Request(self.command, self.path, headers))

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def head(self, status: int, length: int | None = None, **headers: str) -> None:
        """Status line and headers; without a length the end of the connection is the end of the body."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is None:
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def pause(self) -> None:
        """Waits for the end of the test."""
        self.server.owner.closing.wait()


Reply = Callable[[Exchange], None]


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    owner: "Server"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what many tests are about."""


class Server:
    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.asked = threading.Condition()
        self._replies: dict[str, list[Reply]] = {}
        self._listener = _Listener(("127.0.0.1", 0), Exchange)
        self._listener.owner = self
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self._listener.server_port}"

    def url(self, path: str = "/photos.zip") -> str:
        return self.base + path

    def on(self, path: str, *replies: Reply | bytes) -> str:
        """Answers `path` with each reply in turn, with the last one again and again; returns its URL."""
        self._replies[path] = [content(reply) if isinstance(reply, bytes) else reply for reply in replies]
        return self.url(path)

    def wait_for_requests(self, count: int = 1, seconds: float = 30) -> bool:
        with self.asked:
            return self.asked.wait_for(lambda: len(self.requests) >= count, seconds)

    def close(self) -> None:
        self.closing.set()
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def _answer(self, exchange: Exchange, request: Request) -> None:
        with self.asked:
            self.requests.append(request)
            self.asked.notify_all()
            replies = self._replies.get(urlsplit(request.path).path, [])
            reply = replies.pop(0) if len(replies) > 1 else replies[0] if replies else status(404)
        reply(exchange)


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()


def content(data: bytes, *, etag: str | None = None, ranges: bool = True, **headers: str) -> Reply:
    """The file, or the part of it that is asked for."""

    def reply(exchange: Exchange) -> None:
        fields = dict(headers)
        if etag:
            fields["ETag"] = etag
        if ranges:
            fields["Accept_Ranges"] = "bytes"
        asked = exchange.headers.get("Range", "") if ranges else ""
        if asked and exchange.headers.get("If-Range", etag) in (etag, None):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) if last else len(data) - 1
            if start >= len(data):
                exchange.head(416, 0, Content_Range=f"bytes */{len(data)}")
                return
            part = data[start : end + 1]
            fields["Content_Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
            exchange.head(206, len(part), **fields)
            exchange.wfile.write(part)
        else:
            exchange.head(200, len(data), **fields)
            exchange.wfile.write(data)

    return reply


def cut(data: bytes, after: int, *, etag: str | None = None) -> Reply:
    """Promises the whole file and hangs up after some of it."""

    def reply(exchange: Exchange) -> None:
        exchange.head(200, len(data), Accept_Ranges="bytes", **({"ETag": etag} if etag else {}))
        exchange.wfile.write(data[:after])
        exchange.wfile.flush()
        exchange.close_connection = True

    return reply


def status(code: int, body: bytes = b"", **headers: str) -> Reply:
    return lambda exchange: (exchange.head(code, len(body), **headers), exchange.wfile.write(body))[0]


def redirect(location: str, code: int = 302) -> Reply:
    return status(code, Location=location)


def gzipped(data: bytes) -> Reply:
    """The file as a server sends it that compresses whatever it sends."""
    packed = gzip.compress(data)
    return content(packed, ranges=False, Content_Encoding="gzip")


def chunked(data: bytes, size: int = 1000, *, last: bool = True) -> Reply:
    """The file in chunks, its length not said beforehand; without the last chunk it is cut."""

    def reply(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.send_header("Transfer-Encoding", "chunked")
        exchange.end_headers()
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            exchange.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if last:
            exchange.wfile.write(b"0\r\n\r\n")
        else:
            exchange.close_connection = True

    return reply


def without_length(data: bytes) -> Reply:
    """The end of the connection is the end of the file."""

    def reply(exchange: Exchange) -> None:
        exchange.head(200)
        exchange.wfile.write(data)

    return reply


def silent(data: bytes = b"", *, promised: int = 1 << 20) -> Reply:
    """Takes the request, says at most the beginning, and then nothing more."""

    def reply(exchange: Exchange) -> None:
        if data:
            exchange.head(200, promised)
            exchange.wfile.write(data)
            exchange.wfile.flush()
        exchange.pause()
        exchange.close_connection = True

    return reply
