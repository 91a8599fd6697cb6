"""vLLM reads its switches when it is imported: set them before any test of this folder does."""

import os

from actors.engine_environment import CPU_ENVIRONMENT, ENVIRONMENT

for name, value in (ENVIRONMENT | CPU_ENVIRONMENT).items():
    os.environ.setdefault(name, value)
