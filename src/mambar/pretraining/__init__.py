"""Pre-training tasks for recipes: `task=autoregressive`, `task=distillation`."""
