"""Janus and Janus-Pro: checkpoints in both published layouts, prompt formats, what of the policy is trained."""
