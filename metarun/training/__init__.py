"""Trains a run: the loop, the outer step, the learning-rate schedule, and diagnostics of non-finite steps."""
