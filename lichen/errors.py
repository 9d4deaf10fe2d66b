"""The one exception that carries a sentence for the user."""


class UserError(Exception):
    """Something the user gave, or has not installed or plugged in, is wrong.

    The message is one sentence that names what is wrong and what to do. The
    command line prints it without a traceback and exits with status 2.
    """
