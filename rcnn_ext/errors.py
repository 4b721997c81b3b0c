"""Exceptions that the command line shows as one line."""


class UserError(Exception):
    """A mistake that the user can fix: a wrong path, option, file or value.

    The command line prints its message without a traceback and exits with code 2.
    """
