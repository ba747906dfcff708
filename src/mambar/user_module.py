"""Python files of a user, outside the package: recipes and tables that a command names by path."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from mambar.errors import InputError
from mambar.messages import one_line


def is_python_file(name: str) -> bool:
    """True if a recipe or table is named by the path of a Python file."""
    return name.endswith(".py")


def import_file(name: str) -> ModuleType:
    """The module of a Python file, executed once in a process; InputError if it is missing or fails."""
    path = Path(name).expanduser().resolve()
    module_name = f"mambar_user_{path.stem}"
    loaded = sys.modules.get(module_name)
    if loaded is not None and loaded.__file__ == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(module_name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file; check the path.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except InputError:
        del sys.modules[module_name]
        raise
    except Exception as error:
        del sys.modules[module_name]
        raise InputError(f"{path} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    return module
