"""Parts of one-line messages."""

import pytest

from mambar.messages import did_you_mean, needs_package, one_line, printable


def test_control_characters_and_credentials_are_replaced():
    assert printable("a\x1b[31mb\u202ec\ud800\nd é") == "a?[31mb?c? d é"
    assert printable("https://user:pass@host s3:/me:pw@host a@b") == "https://…@host s3:/…@host a@b"


@pytest.mark.parametrize("limit", [20, 21, 120])
def test_one_line_is_at_most_as_long_as_the_limit(limit):
    assert len(one_line("x" * 500, limit=limit)) <= limit and one_line(" short ") == "short"


def test_the_nearest_name_or_the_alternative():
    assert did_you_mean("embeddim", ["depth", "embed_dim"], otherwise="none") == "did you mean 'embed_dim'?"
    assert did_you_mean("xyz", ["depth"], otherwise="choose depth.") == "choose depth."


def test_the_package_to_install_is_named():
    assert needs_package("F", "a", extra="hf") == "F needs the package a (extra hf); install with: pip install a"
    assert needs_package("F", "a", "b") == "F needs the packages a, b; install with: pip install a b"
