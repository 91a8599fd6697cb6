"""What a run is told: sections with defaults, the shipped YAML files, and the rules that a configuration must fulfil.

`load` reads and checks one; every other module takes the sections that it needs.
"""

from t2ir1_ray.config.loading import FILE, everywhere, load, save
from t2ir1_ray.config.portable import SHIPPED, in_submitted_copy, submitted_copy
from t2ir1_ray.config.sections import (
    ClusterConfig,
    Config,
    DataConfig,
    EvalConfig,
    ExpertConfig,
    JournalConfig,
    LearnerConfig,
    PolicyConfig,
    ReferenceConfig,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
)

__all__ = [
    "FILE",
    "SHIPPED",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "ExpertConfig",
    "JournalConfig",
    "LearnerConfig",
    "PolicyConfig",
    "ReferenceConfig",
    "RewardConfig",
    "RolloutConfig",
    "TrainConfig",
    "everywhere",
    "in_submitted_copy",
    "load",
    "save",
    "submitted_copy",
]
