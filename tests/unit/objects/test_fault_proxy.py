"""The proxy that makes a server silent."""

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from promptstore.loopback import loopback_client
from promptstore.testing.fault_proxy import FallSilent, FaultProxy, Hang, HttpFault, fault_proxy, once

BODY = b"0123456789"


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[FaultProxy]:
    """Before a server of one file."""
    (tmp_path / "file").write_bytes(BODY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    with fault_proxy(f"http://127.0.0.1:{server.server_port}") as proxy:
        yield proxy
    server.shutdown()
    server.server_close()
    thread.join()


def _read(client: httpx.Client, url: str, come: bytearray) -> None:
    with client.stream("GET", url) as answer:
        for part in answer.iter_raw():
            come += part


@pytest.mark.parametrize(("fault", "comes"), [(Hang(), b""), (FallSilent(), BODY[:5])])
def test_an_answer_that_hangs_never_ends_and_the_next_one_is_whole(
    proxy: FaultProxy, fault: HttpFault, comes: bytes
) -> None:
    proxy.script = once(fault, lambda _: True)
    url, come = f"{proxy.endpoint}/file", bytearray()
    with loopback_client(0.3) as client:
        with pytest.raises(httpx.ReadTimeout):
            _read(client, url, come)
        assert (bytes(come), proxy.faults) == (comes, 1)
        assert client.get(url, timeout=10).content == BODY
