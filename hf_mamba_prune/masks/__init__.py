"""Which weights go: calibration, scores, budgets and their allocations, exact ranking, and the masks themselves.

`scores/` holds one file a score; `model.choose_masks` is what pruning calls. May import: the ground, models, native.
"""
