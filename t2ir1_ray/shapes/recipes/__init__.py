"""How the embedded checkpoints are made: `python -m t2ir1_ray.shapes.build`. Training imports nothing of this."""
