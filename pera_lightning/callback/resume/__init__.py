"""Going on from a checkpoint as the run would have gone on: progress, random numbers, waiting gradients.

Needs nothing of PERA. Open `exact_resume.py` first.
"""
