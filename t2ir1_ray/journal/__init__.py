"""What a run leaves behind: its folder with metrics, checkpoints and dumps, and what a person sees of it meanwhile."""
