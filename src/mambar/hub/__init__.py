"""Models by name, model directories, released checkpoints, timm and the Hugging Face hub."""

from mambar.atomic_files import write_atomically as write_atomically
from mambar.hub.convert import convert_checkpoint as convert_checkpoint
from mambar.hub.convert import to_official as to_official
from mambar.hub.create import create_model as create_model
from mambar.hub.create import list_models as list_models
from mambar.hub.files import load as load
from mambar.hub.files import save_model as save_model
from mambar.hub.released import load_official as load_official
from mambar.hub.resize import load_pretrained_weights as load_pretrained_weights
