"""Repair without training: least squares on kept weights, and rounding, block by block on inputs of changed blocks.

`blocks.repair` is what pruning calls, `rounding.round_weight` what `bits` does. May import: the ground, models, masks,
native.
"""
