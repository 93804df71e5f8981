"""What a run says: lines of the log that names cannot forge, and warnings of the libraries below that say nothing.

Needs lightning alone, and every wing that runs in a Trainer may import it. Open `messages.py` first.
"""

from pera_lightning.requirements import refuse_compromised_lightning

# Every import of lightning comes after that of this package.
refuse_compromised_lightning()
