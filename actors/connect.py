"""Connecting the driver to a Ray cluster."""

import os

import ray

from t2ir1_ray.config import ClusterConfig
from t2ir1_ray.errors import UserError


def connect(cluster: ClusterConfig) -> None:
    """Join the configured Ray cluster, the one of RAY_ADDRESS, or start a local one (dashboard on loopback).

    Does nothing where this process has a cluster already.
    """
    if ray.is_initialized():
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    local = (
        {}
        if address
        else {
            "include_dashboard": cluster.dashboard,
            "dashboard_host": "127.0.0.1",
            "object_store_memory": int(cluster.object_store_gb * 2**30) if cluster.object_store_gb else None,
        }
    )
    try:
        context = ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"cluster.address: {address}: {str(error).splitlines()[0]}") from None
    if context.dashboard_url:
        print(f"Ray dashboard http://{context.dashboard_url}")
