"""How few bits each weight gets: how the loss follows from rounding a row, and widths and zeros within a budget.

`model.round_model` is what pruning calls. May import: the ground, models, masks,
native, codings, repair.
"""
