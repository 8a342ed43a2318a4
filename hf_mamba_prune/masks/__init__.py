"""Which weights go: calibration, scores, budgets and their allocations, exact ranking, and the masks themselves.

`scores/` holds one file a score; pruning calls `model` and `budget`. May import: the ground, models, native.
"""
