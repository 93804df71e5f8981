"""What stands for a missing file at a URL: that there is none, or a network or server that fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from torch import nn

from pera_lightning import load_adapter
from pera_lightning.cli.options.places import check_checkpoint
from pera_lightning.errors import AdapterFileError, PeraError
from pera_lightning.storage.remote import RemotePath


class Answers(BaseHTTPRequestHandler):
    """Answers with the status that the first part of the path is."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def refusal(url: str) -> PeraError:
    with pytest.raises(AdapterFileError) as caught:
        load_adapter(nn.Linear(1, 1), url)
    with pytest.raises(PeraError) as of_a_checkpoint:
        check_checkpoint("test", f"{url}/best.ckpt")
    assert ("no such checkpoint" in str(of_a_checkpoint.value)) == ("missing" in str(caught.value))
    return caught.value


def test_there_is_no_such_file(server: str) -> None:
    assert "config is missing" in str(refusal(f"{server}/404/adapter"))
    with pytest.raises(FileNotFoundError):
        RemotePath("memory://nowhere/file").read_bytes()


@pytest.mark.parametrize("status", [401, 403, 410, 500, 503])
def test_a_server_that_fails(server: str, status: int) -> None:
    message = str(refusal(f"{server}/{status}/adapter"))
    assert "cannot be reached" in message
    assert str(status) in message
    assert r"\n" not in message


def test_a_network_that_fails() -> None:
    assert "127.0.0.1:9" in str(refusal("http://127.0.0.1:9/adapter"))
    assert "Cannot connect" in str(refusal("http://127.0.0.1:9/adapter"))
