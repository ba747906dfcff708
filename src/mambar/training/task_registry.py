"""The tasks by name. Does not import torch."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from mambar.errors import InputError, RecipeError
from mambar.training.fields import suggestion

TaskClass = TypeVar("TaskClass", bound=type)

# Name, as in Recipe.task → class.
TASKS: Final[dict[str, type[Any]]] = {}


def register_task(name: str, cls: TaskClass | None = None) -> TaskClass | Callable[[TaskClass], TaskClass]:
    """Registers a subclass of `mambar.training.Task` under `name`; without `cls` it returns a decorator."""
    if cls is None:
        return lambda given: _registered(name, given)
    return _registered(name, cls)


def task_class(name: str) -> type[Any]:
    """The class registered under `name`; RecipeError with the nearest name for an unknown one."""
    if name not in TASKS:
        hint = suggestion(name, TASKS, listing="mambar.training.task_registry.TASKS")
        raise RecipeError(f"task={name!r} is not registered; {hint} Import the module that registers it first.")
    return TASKS[name]


def _registered(name: str, cls: TaskClass) -> TaskClass:
    known = TASKS.get(name)
    # A class that is defined again, as in a notebook, replaces the earlier one.
    if known is not None and known.__module__ != cls.__module__:
        raise InputError(f"task {name!r} is already registered by {known.__module__}; choose another name.")
    TASKS[name] = cls
    return cls
