"""The registered tasks, with those of all packages below this one."""

# Importing a package registers its tasks.
import mambar.detection.task  # noqa: F401
import mambar.pretraining.autoregressive  # noqa: F401
import mambar.pretraining.distillation  # noqa: F401
import mambar.pretraining.masked  # noqa: F401
import mambar.pretraining.self_distillation  # noqa: F401
import mambar.segmentation.task  # noqa: F401
import mambar.training.classification  # noqa: F401
from mambar.training.task_registry import task_class as task_class
