"""t2ir1_ray: distributed RL of text-to-image models that think before they draw (T2I-R1, arXiv 2505.00703)."""

__version__ = "0.1.0"
