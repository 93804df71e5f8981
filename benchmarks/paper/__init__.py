"""The tables of the PERA paper (arXiv 2604.11841), run cell by cell with LoRA at the same settings beside PERA."""
