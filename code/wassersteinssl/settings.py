"""Settings of a run. Imports nothing heavy: --help and a wrong option answer before torch is loaded."""


class UserError(Exception):
    """A mistake of the user's, told in one line; a program that meets it exits with status 2."""
