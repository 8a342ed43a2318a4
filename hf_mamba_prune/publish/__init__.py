"""What leaves the machine: the card, its figures, the push to the Hub and jobs that run there.

May import: the ground, texts, measure (the analysis that is drawn, the versions that are named).
"""
