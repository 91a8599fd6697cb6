"""Property tests without a time limit per example: on a loaded machine the first example can take long."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
