"""Looking into a model: token norms, outliers, feature and register maps, probes, pages that show them."""

from mambar.analysis.confusion import Prediction as Prediction
from mambar.analysis.labels import FigureLabel as FigureLabel
from mambar.analysis.norm_panels import NormPanel as NormPanel
from mambar.analysis.norm_panels import compare_norms as compare_norms
from mambar.analysis.norms import register_norms as register_norms
from mambar.analysis.norms import token_norms as token_norms
from mambar.analysis.run_report import write_run_report as write_run_report
