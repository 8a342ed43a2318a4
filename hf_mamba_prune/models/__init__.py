"""What can be pruned in a model and where it stands: architectures, blocks, task heads, divided parameters.

`architectures` is the only place that knows the names of components; everything else asks it. May import: the ground
(config). Everything above may import from here.
"""
