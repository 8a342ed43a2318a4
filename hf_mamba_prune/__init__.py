"""Prune Mamba language models: sparse, smaller on disk, faster to run, with proof."""
