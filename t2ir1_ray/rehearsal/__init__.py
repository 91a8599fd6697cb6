"""A training of a few steps without any checkpoint: the real sizes, random weights, and what every role did meanwhile.

`prepare` makes the run's configuration and small folders in place of checkpoints (`policy`, `experts`), the ordinary
trainer runs it, and `report` says for each role how long it worked, what it held, moved, and waited for.
"""
