"""LoRAs of PEFT: read, checked, and taken as the start of an adapter.

Open `lora_start.py` first.
"""
