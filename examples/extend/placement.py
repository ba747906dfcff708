"""Add a placement: registers in the middle of the patch rows, spread over the rows."""

from mambar.models import VisionMamba, VisionMambaConfig
from mambar.nn import PLACEMENTS


def row_centers(grid, num_registers):
    """The number of patches in front of each register, never decreasing."""
    rows, cols = grid
    return [(index * rows // num_registers) * cols + cols // 2 for index in range(num_registers)]


PLACEMENTS["row_centers"] = row_centers


def build() -> VisionMamba:
    """A small model with this placement."""
    config = VisionMambaConfig(placement="row_centers", img_size=32, patch_size=8, embed_dim=32, depth=2)
    return VisionMamba(config.replace(num_registers=4))
