"""Semantic segmentation: train, evaluate and run UPerNet and linear decoders on a token model."""

from mambar.segmentation.decoders import DECODERS as DECODERS
from mambar.segmentation.decoders import SegmenterConfig as SegmenterConfig
from mambar.segmentation.evaluator import evaluate as evaluate
from mambar.segmentation.evaluator import evaluate_run as evaluate_run
from mambar.segmentation.files import is_segmenter as is_segmenter
from mambar.segmentation.files import load_segmenter as load_segmenter
from mambar.segmentation.files import load_with_inference as load_with_inference
from mambar.segmentation.files import save_segmenter as save_segmenter
from mambar.segmentation.inference import Inference as Inference
from mambar.segmentation.inference import predict as predict
from mambar.segmentation.inference import probabilities as probabilities
from mambar.segmentation.options import SegmentationOptions as SegmentationOptions
from mambar.segmentation.segment import Segmentation as Segmentation
from mambar.segmentation.segment import segment as segment
from mambar.segmentation.segmenter import Segmenter as Segmenter
from mambar.segmentation.task import SegmentationTask as SegmentationTask
from mambar.segmentation.upernet import FCNHead as FCNHead
from mambar.segmentation.upernet import UPerHead as UPerHead
