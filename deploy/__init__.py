"""Files that start a cluster and a run on it, made from a configuration: `python -m deploy.render`."""
