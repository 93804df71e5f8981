"""What a path holds, told by names and first bytes: an adapter, a checkpoint, or something else in its place.

Knows no more of adapters than that, and no torch: the command line asks before it imports it. Open `found_instead.py`
first; the other files are what is refused.
"""
