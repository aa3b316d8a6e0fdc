"""An HTTP app on a port of the loopback interface, in a thread of this process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


@contextmanager
def listening(app: Any, *, port: int = 0, http: Any = "auto") -> Iterator[str]:
    """Serves `app` until the block ends; gives its URL. port: 0 takes a free one. http: uvicorn's."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, http=http, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise RuntimeError("the test server did not start")
        time.sleep(0.005)
    try:
        taken = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{taken}"
    finally:
        server.should_exit = True
        thread.join()
