"""The interface that ranks on several nodes talk over."""

import os
import socket

import pytest
import ray

from actors.network import interface_of, use_nodes_interface


def test_the_interface_is_that_of_the_nodes_address(monkeypatch: pytest.MonkeyPatch) -> None:
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    assert interface_of("127.0.0.1") == loopback
    assert interface_of("192.0.2.1") is None  # of nobody, by RFC 5737
    address, environment = "127.0.0.1", {}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    use_nodes_interface()
    assert environment == {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": f"={loopback}"}
    environment |= {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib1"}  # the user's own
    use_nodes_interface()
    assert environment == {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib1"}
    environment.clear()
    address = "192.0.2.1"
    use_nodes_interface()
    assert environment == {}
