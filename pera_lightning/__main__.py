"""`python -m pera_lightning`: see `pera_lightning.cli`."""

from pera_lightning.cli.main import main

if __name__ == "__main__":
    main()
