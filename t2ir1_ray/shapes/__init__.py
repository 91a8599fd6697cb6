"""The shapes world: an embedded text-to-image task, small enough to learn on two CPU cores and exactly verifiable."""
