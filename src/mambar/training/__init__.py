"""Training that can be left alone: recipes, a trainer for any task, checkpoints that are not lost."""

from mambar.training.recipe import Recipe as Recipe
from mambar.training.recipe import Stage as Stage
from mambar.training.result import RunResult as RunResult
from mambar.training.run import train as train
from mambar.training.task_registry import register_task as register_task
