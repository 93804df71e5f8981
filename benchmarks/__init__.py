"""What PERA costs, beside PEFT's LoRA, a naive PERA and the arithmetic that nobody can avoid. Run by `make bench`."""
