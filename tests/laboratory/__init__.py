"""Several machines in one: trained on, switched off, and compared. By hand, as root: `python -m tests.laboratory`."""
