"""The one exception for input that a person can mend."""


class InputError(ValueError):
    """Bad input: one sentence that names the file, field or argument and what was expected.

    The command line prints the sentence and exits with code 2; no traceback is shown.
    """
