"""The one exception that a person is meant to read: the command line prints it as one line and exits with status 2."""


class UserError(ValueError):
    """Bad input from outside (a flag, a file, a checkpoint). The message names the file, the field and the mend."""
