"""Exceptions that the command line shows as one line."""


class UserError(Exception):
    """Something the user can mend: a wrong path, option, file or value.

    The command line prints its message without a traceback and exits with code 2.
    """
