"""A web server on loopback that serves a folder, and does to chosen requests what servers and networks do."""

from __future__ import annotations

import http.server
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultServer

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.server.folder / self.path.partition("?")[0].strip("/")
        if path.is_dir():
            listing = "".join(f'<a href="{entry.name}">x</a>' for entry in path.iterdir())
            self.answer(200, listing.encode(), {"Content-Type": "text/html"})
        elif not path.is_file():
            self.answer(404, b"")
        else:
            self.server.take(path)(self, path.read_bytes())

    def wanted(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an honest answer."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not found:
            return 200, body, {}
        first, last = int(found[1]), min(int(found[2]), len(body) - 1)
        if first > last:
            return 416, b"", {}
        return 206, body[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(body)}"}

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, length: int = -1) -> None:
        """Send an answer that claims `length` bytes (-1: as many as it has; None is not said)."""
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body) if length < 0 else length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.wfile.flush()

    def hang_up(self, *, reset: bool = False) -> None:
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


Fault = Callable[[_Handler, bytes], None]


def honest(request: _Handler, body: bytes) -> None:
    request.answer(*request.wanted(body))


def whole(request: _Handler, body: bytes) -> None:
    """As a plain static server: no ranges."""
    request.answer(200, body)


def dropped(request: _Handler, body: bytes) -> None:
    status, part, headers = request.wanted(body)
    request.answer(status, part[: len(part) // 2], headers, length=len(part))
    request.hang_up()


def reset(request: _Handler, body: bytes) -> None:
    status, part, headers = request.wanted(body)
    request.answer(status, part[: len(part) // 3], headers, length=len(part))
    request.hang_up(reset=True)


def refused(request: _Handler, body: bytes) -> None:
    request.hang_up(reset=True)


def truncated(request: _Handler, body: bytes) -> None:
    """Half of what was asked for, and says so."""
    status, part, headers = request.wanted(body)
    request.answer(status, part[: len(part) // 2], headers)


def silent(request: _Handler, body: bytes) -> None:
    request.server.stop.wait(60)
    request.hang_up()


def stalled(request: _Handler, body: bytes) -> None:
    status, part, headers = request.wanted(body)
    request.answer(status, part[: len(part) // 2], headers, length=len(part))
    request.server.stop.wait(60)
    request.hang_up()


def slow(request: _Handler, body: bytes) -> None:
    """A body in small pieces; nothing is wrong with it."""
    status, part, headers = request.wanted(body)
    request.answer(status, b"", headers, length=len(part))
    step = max(len(part) // 8, 1)
    for start in range(0, len(part), step):
        request.wfile.write(part[start : start + step])
        request.wfile.flush()
        time.sleep(0.01)


def elsewhere(request: _Handler, body: bytes) -> None:
    """Another range than that asked for, and says so."""
    status, part, headers = request.wanted(body)
    if status == 206:
        headers = {"Content-Range": f"bytes 7-{6 + len(part)}/{len(body)}"}
    request.answer(status, part, headers)


def other_bytes(request: _Handler, body: bytes) -> None:
    """Another range than it says."""
    status, part, headers = request.wanted(body)
    request.answer(status, part[1:] + part[:1], headers)


def endless(request: _Handler, body: bytes) -> None:
    """More than was asked for, without an end in sight."""
    status, part, headers = request.wanted(body)
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Connection", "close")
    request.end_headers()
    request.wfile.write(part)
    while not request.server.stop.is_set():
        request.wfile.write(bytes(1 << 16))
    request.hang_up()


def bomb(request: _Handler, body: bytes) -> None:
    """A small compressed answer that is a large one."""
    status, _, headers = request.wanted(body)
    request.answer(status, _packed(), {**headers, "Content-Encoding": "gzip"})


@cache
def _packed() -> bytes:
    pack = zlib.compressobj(6, wbits=31)
    return b"".join(pack.compress(bytes(1 << 20)) for _ in range(256)) + pack.flush()


def page(request: _Handler, body: bytes) -> None:
    """As the sign-in page of a network."""
    request.answer(200, b"<html>Please sign in</html>", {"Content-Type": "text/html"})


def circle(request: _Handler, body: bytes) -> None:
    request.answer(302, b"", {"Location": request.path})


def garbage(request: _Handler, body: bytes) -> None:
    request.wfile.write(b"\x00\xff not http at all\r\n\r\n")
    request.hang_up()


def status(code: int) -> Fault:
    def answer(request: _Handler, body: bytes) -> None:
        request.answer(code, b"<html>sorry</html>")

    answer.__name__ = f"status_{code}"
    return answer


#: Everything that a server can do.
FAULTS: tuple[Fault, ...] = (
    *(whole, dropped, reset, refused, truncated, silent, stalled, slow, elsewhere, other_bytes),
    *(endless, bomb, page, circle, garbage),
    *map(status, (400, 401, 403, 404, 410, 429, 500, 502, 503)),
)


class FaultServer(http.server.ThreadingHTTPServer):
    """Serves a folder from a thread, until its block ends.

    Args:
        folder: whose files are served.
        fault: what happens to the requests that `of` and `after` choose.
        of: end of the names of the files that it happens to.
        after: this number of requests of such files are answered honestly first.
        once: only one request suffers.
    """

    daemon_threads = True

    def __init__(
        self, folder: Path, fault: Fault = honest, *, of: str = ".tar", after: int = 0, once: bool = False
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.fault, self.of, self.after, self.once = folder, fault, of, after, once
        self.stop = threading.Event()
        self.requests = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def take(self, path: Path) -> Fault:
        """How the next request of a file is answered."""
        if not path.name.endswith(self.of):
            return honest
        with self._lock:
            self.requests += 1
            hit = self.requests == self.after + 1 if self.once else self.requests > self.after
        return self.fault if hit else honest

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up."""

    def __enter__(self) -> FaultServer:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        self.shutdown()
        self.server_close()
