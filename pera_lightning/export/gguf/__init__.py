"""What llama.cpp loads: a LoRA as a GGUF adapter, and a copy of the base's GGUF file with the adapter in it.

May import the plain LoRA and merging. Open `export_merged_gguf.py` for a whole model, `gguf_adapter.py` for an adapter.
"""
