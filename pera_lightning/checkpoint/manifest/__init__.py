"""`adapter_config.json`: what an adapter is made of and which base it belongs to, checked by one schema.

Open `manifest.py` first, `manifest_schema.py` for a new field.
"""
