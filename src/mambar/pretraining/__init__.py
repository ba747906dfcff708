"""Training without labels or with a teacher: the tasks autoregressive, self_distillation and distillation."""
