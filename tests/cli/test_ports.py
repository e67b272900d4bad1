"""Ports that a mesh keeps for its servers."""

import socket

import pytest

from cli.mesh.ports import LOOPBACK, reserved


def test_a_reserved_port_is_its_servers_alone() -> None:
    """A server listens on a reserved port, again after a restart, and whoever does not know of it can't have it."""
    with socket.socket() as drawn:
        drawn.bind((LOOPBACK, 0))
        port = drawn.getsockname()[1]
    with reserved([port]):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((LOOPBACK, port))
        for _ in range(2):
            with socket.create_server((LOOPBACK, port)), socket.create_connection((LOOPBACK, port), timeout=5):
                pass
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((LOOPBACK, port))
