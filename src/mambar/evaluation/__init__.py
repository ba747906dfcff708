"""Metrics and evaluation of trained models."""

from mambar.evaluation.classification import ClassificationResult as ClassificationResult
from mambar.evaluation.classification import evaluate as evaluate
from mambar.evaluation.metrics import confusion_counts as confusion_counts
from mambar.evaluation.metrics import top_k_correct as top_k_correct
