"""Options as users write them: which there are, where one was given, and what is wrong with it.

May import what is light, such as errors: a typo is told before torch and lightning are imported. Open `checked.py`
first.
"""
