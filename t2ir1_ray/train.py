"""`python -m t2ir1_ray.train [--config NAME|PATH] [section.key=value ...]`: train a policy on a Ray cluster."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import ray

from t2ir1_ray import config as configuration
from t2ir1_ray.config import ClusterConfig
from t2ir1_ray.entry import run_entry
from t2ir1_ray.errors import UserError


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m t2ir1_ray.train", description="Train a policy with BiCoT-GRPO.")
    parser.add_argument("--config", default="shapes", help="a shipped name (shapes, janus_pro_1b, ...) or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="e.g. train.steps=3 train.seed=1")
    options = parser.parse_args(arguments)
    config = configuration.load(options.config, options.overrides)
    name = config.journal.name or f"{Path(options.config).stem}-{time.strftime('%Y%m%d-%H%M%S')}"

    # After the configuration is known to be good: these imports take seconds.
    from t2ir1_ray.policy import checked_tensors, load_config
    from t2ir1_ray.trainer import train

    checked_tensors(config.policy.path, load_config(config.policy.path))
    connect(config.cluster)
    try:
        train(config, Path(config.journal.root) / name)
    finally:
        ray.shutdown()


def connect(cluster: ClusterConfig) -> None:
    """Join the configured Ray cluster, the one of RAY_ADDRESS, or start a local one (dashboard on loopback)."""
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


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
