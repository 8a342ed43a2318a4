"""Where text comes from and how it becomes sequences of token ids.

`sources` names them, `files` and `columns` read them, `sequences` cuts and samples. May import: the ground.
"""
