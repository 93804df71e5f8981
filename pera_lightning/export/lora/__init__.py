"""An adapter as a plain LoRA: exactly, or cut to a smaller rank.

Every other export begins here. Open `export_lora.py` first, `plain_lora.py` for what is written down.
"""
