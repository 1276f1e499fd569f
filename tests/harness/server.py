"""A real HTTP server on loopback that answers as told and remembers what it was asked."""

import base64
import gzip
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

AUTHORITY = Path(__file__).parent / "tls/authority.pem"
"""Who has signed the certificate of a server that speaks TLS: for localhost, 127.0.0.1 and photos.example."""


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

    do_HEAD = do_POST = do_CONNECT = do_GET

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

    def reset(self) -> None:
        """Ends the connection with a reset, as a machine does that has gone down."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        os.close(self.connection.detach())


Reply = Callable[[Exchange], None]


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    owner: "Server"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what many tests are about."""


class Server:
    def __init__(self, *, tls: bool = False) -> None:
        self.scheme = "https" if tls else "http"
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.asked = threading.Condition()
        self._replies: dict[str, list[Reply]] = {}
        self._listener = _Listener(("127.0.0.1", 0), Exchange)
        self._listener.owner = self
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(AUTHORITY.with_name("server.pem"))
            # The handshake is for the connection's own thread: a client may end it, or never begin.
            self._listener.socket = context.wrap_socket(
                self._listener.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def base(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return self._listener.server_port

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
            path = request.path if request.method == "CONNECT" else urlsplit(request.path).path
            replies = self._replies.get(path, [])
            reply = replies.pop(0) if len(replies) > 1 else replies[0] if replies else status(404)
        reply(exchange)


@contextmanager
def serving(*, tls: bool = False) -> Iterator[Server]:
    server = Server(tls=tls)
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


def raw(data: bytes) -> Reply:
    """These bytes, whatever they are, and the end of the connection."""

    def reply(exchange: Exchange) -> None:
        exchange.wfile.write(data)
        exchange.close_connection = True

    return reply


def reset(data: bytes = b"") -> Reply:
    """These bytes, and then a reset of the connection."""

    def reply(exchange: Exchange) -> None:
        exchange.wfile.write(data)
        exchange.reset()

    return reply


def head(length: int | None = None, status: str = "200 OK", **headers: str) -> bytes:
    """For `raw` and `reset`."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    if length is not None:
        fields["Content-Length"] = str(length)
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode()


def part(data: bytes, start: int, *, said: int | None = None, total: int | None = None, **headers: str) -> Reply:
    """The file from `start` on, whatever is asked for; maybe said to begin elsewhere, or to be of another file."""
    said = start if said is None else said
    said_range = f"bytes {said}-{said + len(data) - start - 1}/{len(data) if total is None else total}"
    return status(206, data[start:], Content_Range=said_range, **headers)


def tunnel(to: Server, user_and_password: str | None = None) -> Reply:
    """What a proxy does with CONNECT, for whoever knows the password."""
    allowed = user_and_password and "Basic " + base64.b64encode(user_and_password.encode()).decode()

    def reply(exchange: Exchange) -> None:
        if allowed and exchange.headers.get("Proxy-Authorization") != allowed:
            exchange.head(407, 0, Proxy_Authenticate='Basic realm="proxy"')
            return
        with socket.create_connection(("127.0.0.1", to.port)) as server:
            exchange.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            exchange.close_connection = True
            back = threading.Thread(target=_pass_on, args=(server, exchange.connection), daemon=True)
            back.start()
            _pass_on(exchange.connection, server)
            back.join()

    return reply


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        """One of the two has gone."""


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
