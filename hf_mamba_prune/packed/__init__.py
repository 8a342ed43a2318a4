"""The packed checkpoint, a third of the size: a quantization method of transformers that runs fast on a CPU.

May import: the ground, models, native, codings.
"""
