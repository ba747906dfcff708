"""Parts of one-line messages: printable text, the nearest known name, the package to install."""

import difflib
import re
from collections.abc import Iterable

# User name and password in an address; pathlib turns "https://" into "https:/".
_CREDENTIALS = re.compile(r"(://)[^/\s@]+@|(:/)[^/\s@:]+:[^/\s@]+@")


def printable(text: object, *, replacement: str = "?") -> str:
    """The text on one line: control characters are replaced, white space is a space, credentials are removed."""
    line = _CREDENTIALS.sub(r"\1\2…@", str(text))
    return "".join(each if each.isprintable() else " " if each in "\n\t" else replacement for each in line)


def one_line(text: object, *, limit: int = 120) -> str:
    """The printable text, shortened in the middle to at most `limit` characters."""
    line = printable(text).strip()
    return line if len(line) <= limit else f"{line[: limit // 2 - 1]}…{line[-(limit // 2) :]}"


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str, cutoff: float = 0.6) -> str:
    """`did you mean 'NEAREST'?`, or `otherwise` if no known name is similar."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else otherwise


def needs_package(feature: str, *packages: str, extra: str | None = None) -> str:
    """The error message for a feature whose packages are not installed; `extra` is the extra that has them.

    It installs the packages by name, which is right for a checkout, a wheel and an index alike.
    """
    noun = "package" if len(packages) == 1 else "packages"
    source = f" (extra {extra})" if extra else ""
    return f"{feature} needs the {noun} {', '.join(packages)}{source}; install with: pip install {' '.join(packages)}"


def short_repr(value: object, *, limit: int = 60) -> str:
    """The repr of a value, cut to about `limit` characters."""
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to print integers of more than 4,300 digits.
        return "a number of thousands of digits"
    return text if len(text) <= limit else f"{text[: limit - 20]}… ({len(text)} characters)"
