"""LightningModules over transformers models: `PeraCausalLM` and `PeraSequenceClassifier`, their losses and metrics.

May import data and loading, nothing of the callback. Open `causal_lm.py` first.
"""

from pera_lightning.requirements import refuse_compromised_lightning

# Every import of lightning comes after that of this package.
refuse_compromised_lightning()
