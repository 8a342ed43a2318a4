"""How few bits each weight gets: how the loss follows from rounding a row, and the widths within a budget of bytes.

`model.round_model` is what pruning calls. May import: the ground, models,
masks, native, packed, repair.
"""
