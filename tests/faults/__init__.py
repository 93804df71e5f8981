"""Kinds of faults that users reported: one file a kind, each with the right value."""
