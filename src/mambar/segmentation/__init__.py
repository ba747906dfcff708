"""Semantic segmentation: UPerNet on a token model, its training, its inference on images of any size."""

from mambar.segmentation.decoders import DECODERS as DECODERS
from mambar.segmentation.inference import Inference as Inference
from mambar.segmentation.inference import predict as predict
from mambar.segmentation.inference import probabilities as probabilities
from mambar.segmentation.segmenter import Segmenter as Segmenter
from mambar.segmentation.segmenter import SegmenterConfig as SegmenterConfig
from mambar.segmentation.upernet import FCNHead as FCNHead
from mambar.segmentation.upernet import UPerHead as UPerHead
