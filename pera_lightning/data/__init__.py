"""Data for instruction tuning, plain text and classification: reading, checking, prompting, packing and batching.

Knows tokenizers, and nothing of models' losses or the callback. Open the file of a DataModule first; `chat/` has
conversations and templates, `reading/` files and rows.
"""

from pera_lightning.requirements import refuse_compromised_lightning

# Every import of lightning comes after that of this package.
refuse_compromised_lightning()
