"""How few bits each weight gets: how the loss follows from rounding a row, and the widths within a budget of bytes.

`sensitivity.measure_sensitivity` looks at gradients, `widths.choose_widths` decides. May import: the ground, models,
masks, native.
"""
