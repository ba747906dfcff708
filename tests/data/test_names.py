import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambar.data.names import PackedNames
from mambar.messages import one_line


@given(st.lists(st.text()))
def test_names_come_back(names):
    packed = PackedNames.from_names(names)
    assert list(packed) == names and len(packed) == len(names)
    assert list(pickle.loads(pickle.dumps(packed))) == names


def test_undecodable_file_names_survive():
    odd = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert PackedNames.from_names([odd, "x"])[0] == odd


@pytest.mark.parametrize("index", [-1, 2])
def test_there_is_no_name_beyond_the_last(index):
    with pytest.raises(IndexError):
        PackedNames.from_names(["a", "b"])[index]


@given(st.text())
def test_one_line_is_one_short_line(text):
    line = one_line(text, limit=40)
    assert len(line) <= 40 and len(line.splitlines()) <= 1 and (line == "" or line.isprintable())


def test_one_line_keeps_both_ends():
    assert one_line("a" * 100 + "z", limit=10) == "aaaa…aaaaz"
    assert one_line("plain") == "plain"
