"""Evaluation on the commonsense tasks of LLM-Adapters, by generation or by ranking, and on those of lm-eval.

May import models and exports. Open `commonsense_run.py` first; `harness.py` is the way to lm-eval, whose tasks
`harness_run.py` runs.
"""

from pera_lightning.evaluation.commonsense_run import evaluate_commonsense
from pera_lightning.evaluation.extraction import extract_answer
from pera_lightning.evaluation.harness import lm_eval_model
from pera_lightning.evaluation.results import Evaluation, Prediction

__all__ = ["Evaluation", "Prediction", "evaluate_commonsense", "extract_answer", "lm_eval_model"]
