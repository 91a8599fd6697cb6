"""Which network interface processes on several nodes talk over."""

import os

import psutil
import ray


def use_nodes_interface() -> None:
    """Gloo and NCCL of this process take the interface of the address by which Ray knows this node.

    Left alone, gloo takes the address of the host's name, which Debian's /etc/hosts gives as 127.0.1.1, and NCCL the
    first interface that is up, which may be a container bridge. What the environment says already stays.
    """
    name = interface_of(ray.util.get_node_ip_address())
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # =: this one, not all whose names begin so


def interface_of(address: str) -> str | None:
    """Name of the interface that has an IP address; None: none of this machine (behind a translated address)."""
    found = (name for name, has in psutil.net_if_addrs().items() for each in has if each.address == address)
    return next(found, None)
