"""Looking into a model: token norms, outliers, feature and register maps, probes, pages that show them."""

from mambar.analysis.collect import CollectedNorms as CollectedNorms
from mambar.analysis.collect import collect_norms as collect_norms
from mambar.analysis.confusion import Prediction as Prediction
from mambar.analysis.distributions import NormDistribution as NormDistribution
from mambar.analysis.distributions import norm_distributions as norm_distributions
from mambar.analysis.feature_maps import feature_maps as feature_maps
from mambar.analysis.labels import FigureLabel as FigureLabel
from mambar.analysis.local_probes import local_probes as local_probes
from mambar.analysis.local_probes import local_tokens as local_tokens
from mambar.analysis.norm_panels import NormPanel as NormPanel
from mambar.analysis.norm_panels import compare_norms as compare_norms
from mambar.analysis.norms import register_norms as register_norms
from mambar.analysis.norms import token_norms as token_norms
from mambar.analysis.outliers import FixedThreshold as FixedThreshold
from mambar.analysis.outliers import Gap as Gap
from mambar.analysis.outliers import MedianDeviation as MedianDeviation
from mambar.analysis.outliers import TopShare as TopShare
from mambar.analysis.outliers import outlier_mask as outlier_mask
from mambar.analysis.outliers import outlier_statistics as outlier_statistics
from mambar.analysis.probes import pool_features as pool_features
from mambar.analysis.probes import probe as probe
from mambar.analysis.probes import probe_all as probe_all
from mambar.analysis.register_maps import cluster_registers as cluster_registers
from mambar.analysis.register_maps import register_maps as register_maps
from mambar.analysis.register_maps import register_similarity as register_similarity
from mambar.analysis.run_report import write_run_report as write_run_report
