"""The errors a user can meet: one tree, each with the exit code of the command line.

Every message is one line: what it is about, what came, what is allowed, what to do.
"""


class MambarError(Exception):
    """An error with a one-line message that a user can act on; the command line exits with `exit_code`."""

    exit_code = 1


class InputError(MambarError, ValueError):
    """Something the user gave (an argument, a path, a file) cannot be used as it is."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe has an unknown field or a value that is not allowed."""


class DataError(InputError):
    """A dataset is missing, empty, or not laid out as expected."""


class ImageError(InputError):
    """An image cannot be read, or is refused before it is decoded."""


class CheckpointError(InputError):
    """A checkpoint is damaged, unsafe, or of a newer format than this version reads."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint does not fit the model; the message lists the keys of both sides."""


class BackendUnavailable(MambarError, RuntimeError):
    """An asked-for backend cannot run here; the message has the reason."""

    exit_code = 2


class DiskError(MambarError, OSError):
    """A file could not be written in full; what was there before is intact."""

    exit_code = 3


class NonFiniteError(MambarError, ArithmeticError):
    """Training met NaN or Inf too often in a row; the message names the step and the first bad module."""

    exit_code = 4
