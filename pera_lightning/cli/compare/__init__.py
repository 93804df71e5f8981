"""`compare`: methods side by side on a user's own fit.

May import everything. Open `command.py` first.
"""
