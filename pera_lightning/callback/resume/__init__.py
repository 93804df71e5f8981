"""Going on from a checkpoint as the run would have gone on: progress, random numbers, waiting gradients.

Needs no adapters. Open `exact_resume.py` first.
"""
