"""Does a configuration fit: memory of every role, room on nodes and disks, before anything starts."""
