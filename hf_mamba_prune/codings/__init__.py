"""One weight in few bytes: its parts, how they lie in a run of bytes, and the grids that a model was rounded to.

May import: the ground, models, native.
"""
