"""Processes and devices: rollout, expert, reference and learner actors, their placement and the way of the weights."""
