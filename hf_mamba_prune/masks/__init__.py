"""Which weights go: calibration, scores, budgets and their allocations, exact ranking, and the masks themselves.

`scores/` holds one file a score; what pruning calls is in `model` and `budget`. May import: the ground, models, native.
"""
