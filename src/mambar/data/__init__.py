"""Pixels and labels; knows nothing of models."""

from mambar.data.catalog import DATASETS as DATASETS
from mambar.data.catalog import open_dataset as open_dataset
from mambar.data.dataset import ImageDataset as ImageDataset
from mambar.data.dataset import Sample as Sample
from mambar.data.dataset import Subset as Subset
from mambar.data.dataset import stratified_split as stratified_split
from mambar.data.images import read_image as read_image
from mambar.data.keys import key as key
from mambar.data.loaders import Batch as Batch
from mambar.data.loaders import evaluation_batches as evaluation_batches
from mambar.data.loaders import training_batches as training_batches
from mambar.data.mixup import Mixup as Mixup
from mambar.data.packing import pack_folder as pack_folder
from mambar.data.photographs import photographs as photographs
from mambar.data.samplers import epoch_order as epoch_order
from mambar.data.samplers import steps_per_epoch as steps_per_epoch
from mambar.data.shapes import Shapes as Shapes
from mambar.data.transforms import EvalTransform as EvalTransform
from mambar.data.transforms import Preprocessing as Preprocessing
from mambar.data.transforms import TrainTransform as TrainTransform
