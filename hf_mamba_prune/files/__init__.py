"""Models on disk and on the Hub: load, save, the original layout of state-spaces, and where a model is from.

May import: the ground, models, codings, packed.
"""
