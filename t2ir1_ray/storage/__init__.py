"""Files that a person keeps: written whole or not at all, and by one process at a time."""

from t2ir1_ray.storage.one_writer import SILENCE_S, OneWriter, heartbeat
from t2ir1_ray.storage.whole_files import AppendedLines, cache_folder, disk_failure, whole_file, write_whole

__all__ = [
    "SILENCE_S",
    "AppendedLines",
    "OneWriter",
    "cache_folder",
    "disk_failure",
    "heartbeat",
    "whole_file",
    "write_whole",
]
