"""Listening sockets and the messages when there is none to be had."""

import socket

import pytest

from sluice_cli.up.errors import UpError
from sluice_cli.up.sockets import is_loopback, listen, url_of


def test_a_taken_port_is_an_error_that_names_the_option() -> None:
    with listen("127.0.0.1", 0, option="--port") as first:
        port = first.getsockname()[1]
        with pytest.raises(UpError, match=rf"--admin-port: 127\.0\.0\.1:{port} is taken"):
            listen("127.0.0.1", port, option="--admin-port")


def test_a_port_is_free_again_at_once_after_it_was_used() -> None:
    with listen("127.0.0.1", 0, option="--port") as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            listener.setblocking(True)
            accepted, _ = listener.accept()
            accepted.close()  # Closed on this side first: TIME_WAIT is here.
            assert client.recv(1) == b""
    listen("127.0.0.1", port, option="--port").close()


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(UpError, match=r"--host: '192\.0\.2\.1' is no address of this machine"):
        listen("192.0.2.1", 0, option="--port")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.7", False),
        ("example.org", False),
        ("localhost.example.org", False),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_urls_reach_the_socket_from_here() -> None:
    with listen("0.0.0.0", 0, option="--port") as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
