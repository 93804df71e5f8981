"""Conversations and templates: from a row to the text that a model is trained on, and which part of it.

Templates run in a process of their own. Open `conversations.py` first, then `prompts.py`.
"""
