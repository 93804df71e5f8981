"""An adapter as a plain LoRA: exactly, or cut to a smaller rank.

Open `plain_lora.py` first: what is written down, whatever the form. `export_lora.py` writes and compares it.
"""
