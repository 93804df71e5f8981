"""The command line: `fit`, `validate`, `test`, `predict` through LightningCLI, and tools that need no Trainer."""
