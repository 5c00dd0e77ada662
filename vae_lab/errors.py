"""The one exception that means: the request was wrong, and here is what to do about it."""


class UsageError(ValueError):
    """A wrong request (a key, a file, a folder): what was found, where, what was expected, what to do.

    A command prints it without a traceback and exits with code 2.
    """
