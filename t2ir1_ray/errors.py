"""The two ways in which a command of this project ends badly, each with one line and its exit code."""


class UserError(Exception):
    """Bad configuration, data, checkpoint or resources. One line that names field, value and mend; exit code 2."""


class RunError(Exception):
    """A run that could not go on (a dead process, a timeout, a non-finite reward). One line, exit code 1."""
