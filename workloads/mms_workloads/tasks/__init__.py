"""Tasks whose parameters all get a gradient in each step: from records to an artifact that can be served.

A task is a module of its own (task.py says what one has); the learner does for all of them what the loop asks for.
"""
