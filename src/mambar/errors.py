"""The errors that users can cause: one class hierarchy, each class with its exit code of the command line.

Every message is one line: the argument, the value given, the allowed values, and what to do.
"""


class MambarError(Exception):
    """An error with a one-line message that a user can act on; the command line exits with `exit_code`."""

    exit_code = 1


class InputError(MambarError, ValueError):
    """An argument, path or file given by the user is invalid."""

    exit_code = 2


class UnknownFieldError(InputError, TypeError):
    """A keyword argument of a model that it does not have; a TypeError too, as for any function."""


class RecipeError(InputError):
    """A recipe has an unknown field or a value that is not allowed."""


class DataError(InputError):
    """A dataset is missing, empty, or has an unexpected layout."""


class ImageError(InputError):
    """An image cannot be read, or is refused before it is decoded."""


class CheckpointError(InputError):
    """A checkpoint is damaged, unsafe, or of a newer format than this version reads."""


class NewerFormatError(CheckpointError):
    """An intact file of a newer format than this version reads; no older checkpoint is loaded in its place."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint does not match the model; the message lists the missing and unexpected keys."""


class BackendUnavailable(MambarError, RuntimeError):
    """A requested backend cannot run on this machine; the message states the reason."""

    exit_code = 2


class DiskError(MambarError, OSError):
    """A file could not be written completely; an existing file is unchanged."""

    exit_code = 3


class NonFiniteError(MambarError, ArithmeticError):
    """Too many consecutive steps had NaN or Inf; the message states the step and the first non-finite module."""

    exit_code = 4
