"""The one exception that is meant for a person: the command line prints it as one line and exits with status 2."""

from .text import one_line


class UserError(ValueError):
    """Bad input from outside (a flag, a file, a checkpoint). The message names the file and the field, says what is wrong
    and how to fix it. It is one clean line, whatever text of other people it quotes."""

    def __init__(self, message: str):
        super().__init__(one_line(message))
