"""How good and how fast: perplexity, zero-shot tasks, speeds, counts of zeros, decay of the recurrence, analysis.

Whatever is measured ends in `report.py`'s facts. May import: the ground, models, texts, masks, native, packed.
"""
