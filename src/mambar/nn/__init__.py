"""Layers: patch embedding, registers and their placement, mixers, blocks, norms and heads."""

from mambar.nn.block import MambaBlock as MambaBlock
from mambar.nn.cuda_graph import use_cuda_graphs as use_cuda_graphs
from mambar.nn.heads import HEADS as HEADS
from mambar.nn.heads import Head as Head
from mambar.nn.heads import RegisterHead as RegisterHead
from mambar.nn.mixer import MIXERS as MIXERS
from mambar.nn.mixer import CrossScanMixer as CrossScanMixer
from mambar.nn.mixer import DirectionalScan as DirectionalScan
from mambar.nn.mixer import ForwardMixer as ForwardMixer
from mambar.nn.mixer import MambaMixer as MambaMixer
from mambar.nn.norm import RMSNorm as RMSNorm
from mambar.nn.patch_embed import PatchEmbed as PatchEmbed
from mambar.nn.placement import PLACEMENTS as PLACEMENTS
from mambar.nn.placement import register_positions as register_positions
from mambar.nn.position_embed import PositionEmbed as PositionEmbed
from mambar.nn.registers import RegisterTokens as RegisterTokens
from mambar.nn.registers import Tokens as Tokens
