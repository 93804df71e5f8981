"""From files to rows and splits: JSON lines, texts, GLUE's tables; where a bad row stands.

Knows nothing of models and tokenizers. Open `row_files.py` first: its table names the formats of files.
"""
