import pytest

from mambar.errors import InputError
from mambar.image_paths import find_images


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in (
        "a.png",
        "b.JPG",
        "in/c.jfif",
        "in/deep/d.webp",
        "in/.hidden.png",
        "in/notes.txt",
        "x[1].png",
        "e.dat",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["b.JPG", "a.png"], ["b.JPG", "a.png"]),
        (["in"], ["in/c.jfif", "in/deep/d.webp"]),
        (["a.png", "*.png", "."], ["a.png", "x[1].png", "b.JPG", "in/c.jfif", "in/deep/d.webp"]),
        (["**/*.*"], ["a.png", "b.JPG", "in/c.jfif", "in/deep/d.webp", "x[1].png"]),
        # A file that is named is taken whatever its suffix, and a name with brackets is a name.
        (["x[1].png", "e.dat"], ["x[1].png", "e.dat"]),
        # Reading it says that it does not exist.
        (["gone.png"], ["gone.png"]),
    ],
)
def test_files_folders_and_patterns_are_found_once(place, given, found):
    assert [path.as_posix() for path in find_images(given)] == found


@pytest.mark.parametrize("given", ["*.gif", "empty", "in/n*"])
def test_what_holds_no_image_is_refused(place, given):
    (place / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image; give files, folders or patterns of PNG, JPEG or WEBP"):
        find_images([given])
