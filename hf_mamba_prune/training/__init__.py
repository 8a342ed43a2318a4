"""Training with masks: the Trainer that prunes, its masks over time, distillation, and recovery after pruning.

`trainer` holds PruningTrainer and PruningCallback, `recovery` what the command runs. May import: the ground, models,
texts, masks, measure, native, codings, repair, files and publish (its record of a run is a report and a card).
"""
