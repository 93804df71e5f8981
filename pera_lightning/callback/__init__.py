"""`PeraCallback`, and what it does in a run of anybody's LightningModule.

May import everything but evaluation and the command line. Open `callback.py` first; what it calls has a file of the
same name.
"""

from pera_lightning.requirements import refuse_compromised_lightning

# Every import of lightning comes after that of this package.
refuse_compromised_lightning()
