"""What one GPU says about the parts of this project that CI's CPUs cannot judge: speed, memory, kernels, bits.

`python -m tests.gpu [--out FILE.json]`: random weights at real sizes, no checkpoint, no network, under seven minutes.
A module per part; each has `figures(tiny)`, which yields one dictionary per finding as soon as it has it.
"""
