"""Gradients: BiCoT-GRPO as pure functions, log-probs of both segments, micro-batches, and the DeepSpeed rank."""
