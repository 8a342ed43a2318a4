"""Where text comes from and how it becomes sequences of token ids.

`sources` reads files and data sets, `sequences` cuts and samples. May import: the ground.
"""
