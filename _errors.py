"""What a user did that we cannot work with."""


class InputError(ValueError):
    """The user's input cannot be used: one line with what was wanted, what was found, what to do.

    The command line prints it as that line and exits with code 2.
    """
