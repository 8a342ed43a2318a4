"""Repair without training: least squares on the kept weights, block by block on inputs of the pruned blocks.

`blocks.repair` is what pruning calls. May import: the ground, models, masks.
"""
