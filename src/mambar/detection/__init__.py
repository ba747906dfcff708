"""Detection and instance segmentation: train, evaluate and run Faster R-CNN and Mask R-CNN on a token model."""

from mambar.detection.detect import Detections as Detections
from mambar.detection.detect import detect as detect
from mambar.detection.detector import Detector as Detector
from mambar.detection.detector import DetectorConfig as DetectorConfig
from mambar.detection.evaluator import evaluate_run as evaluate_run
from mambar.detection.files import load_detector as load_detector
from mambar.detection.files import save_detector as save_detector
from mambar.detection.task import DetectionTask as DetectionTask
