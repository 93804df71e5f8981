"""The command line: `fit`, `validate`, `test`, `predict` through LightningCLI, and tools that need no Trainer.

May import everything. Open `main.py` first; a tool is a file of its name, or a folder where it takes more.
"""
