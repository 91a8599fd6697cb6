"""Connecting the driver to a Ray cluster."""

import os

import ray

from t2ir1_ray.config import ClusterConfig
from t2ir1_ray.errors import UserError, reason


def connect(cluster: ClusterConfig) -> None:
    """Join the configured Ray cluster, the one of RAY_ADDRESS, or start a local one (dashboard on loopback).

    Does nothing where this process has a cluster already. Raises UserError with one line, whatever Ray has against it.
    """
    address = joined_address(cluster)
    if ray.is_initialized():
        return
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
    except Exception as error:  # of many classes, bare Exception among them
        where = f"{address}: " if address else "a local cluster does not start: "
        raise UserError(f"cluster.address: {where}{reason(error)}{_mend(error)}") from None
    if context.dashboard_url:
        print(f"Ray dashboard http://{context.dashboard_url}")


def joined_address(cluster: ClusterConfig) -> str | None:
    """Of the cluster to join; None: a local one is started. Raises UserError for what the driver cannot use.

    Ray Client (`ray://`) gives a proxy instead of a driver: no object store of this process, no streaming generators.
    """
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if address and "://" in address:
        field = "cluster.address" if cluster.address else "RAY_ADDRESS"
        mend = "give host:port of the head as `ray start` names it, on a node of the cluster, or use `ray job submit`"
        raise UserError(f"{field}={address[:200]}: only a driver inside of the cluster can train: {mend}")
    return address


def _mend(error: BaseException) -> str:
    if "AF_UNIX" in str(error):
        return ": set RAY_TMPDIR to a short path such as /tmp: Ray keeps its sockets below it"
    return ""
