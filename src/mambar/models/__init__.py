"""Models: configuration, variants, VisionMamba, the backbone protocols, complexity."""

from mambar.models.backbones import BACKBONES as BACKBONES
from mambar.models.backbones import register_backbone as register_backbone
from mambar.models.complexity import Complexity as Complexity
from mambar.models.complexity import complexity as complexity
from mambar.models.config import VARIANTS as VARIANTS
from mambar.models.config import VisionMambaConfig as VisionMambaConfig
from mambar.models.config import variant as variant
from mambar.models.protocol import Backbone as Backbone
from mambar.models.protocol import TokenModel as TokenModel
from mambar.models.timm_vit import TimmViT as TimmViT
from mambar.models.vision_mamba import VisionMamba as VisionMamba
