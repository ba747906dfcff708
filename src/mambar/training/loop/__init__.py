"""The training loop: stages, steps, optimizer, schedule, signals."""
