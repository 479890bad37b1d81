"""Ray in a process of its own, run by a `Relay`: ``python -m dsgan_datasets.remote.ray_relay DESCRIPTOR``.

Messages to it: the address, then ``(number, worker, method, arguments)``. Messages from it: ``("hello", place)`` or
``("failed", why)``; then ``(number, "answer", value)`` or ``(number, "lost", why)`` for each number, and
``("workers", facts)`` or ``("away", why)`` about once a second. It ends when the other side does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from dsgan_datasets.credentials import without_credentials
from dsgan_datasets.engines.ray import in_short
from dsgan_datasets.remote.errors import RemoteError
from dsgan_datasets.remote.ray_cluster import Workers, connect

#: Seconds between two looks at who is there.
_LOOK_EVERY = 0.5


def main(descriptor: int) -> None:
    """Serve one connection."""
    connection: Connection[Any, Any] = Connection(descriptor)
    sending = threading.Lock()

    def send(*message: Any) -> None:
        with sending:
            connection.send(message)

    try:
        ray, place = connect(connection.recv())
    except (ImportError, RemoteError) as error:
        return send("failed", str(error))
    workers = Workers(ray)
    send("hello", place)

    def watch() -> None:
        while True:
            try:
                send("workers", workers.look())
            except RemoteError as error:
                send("away", str(error))
            time.sleep(_LOOK_EVERY)

    def pass_on(number: int, future: Any) -> None:
        error = future.exception()
        if error is None:
            send(number, "answer", future.result())
        else:
            send(number, "lost", without_credentials(in_short(error)))

    threading.Thread(target=watch, daemon=True).start()
    while True:
        number, worker, method, arguments = connection.recv()
        try:
            future = workers.call(worker, method, *arguments).future()
        except KeyError:
            send(number, "lost", "it is gone")
        except workers.losses as error:
            send(number, "lost", without_credentials(in_short(error)))
        else:
            future.add_done_callback(lambda done, number=number: pass_on(number, done))


if __name__ == "__main__":
    with suppress(EOFError, OSError):  # the other side has ended
        main(int(sys.argv[1]))
    os._exit(0)  # Ray's own ending may wait for a cluster that is away
