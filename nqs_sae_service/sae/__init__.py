"""Sparse autoencoders: x = sum_i f_i d_i + b_d + error, with few features f_i active at a time.

``KINDS`` maps the ``kind`` of ``[sae]`` to its record; a new architecture is one file with its record and its training step.
"""

from __future__ import annotations

from .batchtopk import BatchTopK
from .gated import Gated
from .jumprelu import JumpRelu
from .matryoshka import Matryoshka
from .record import SaeSection
from .relu_l1 import ReluL1
from .topk import TopK

KINDS: dict[str, type[SaeSection]] = {
    "topk": TopK,
    "relu-l1": ReluL1,
    "batchtopk": BatchTopK,
    "matryoshka": Matryoshka,
    "gated": Gated,
    "jumprelu": JumpRelu,
}

__all__ = ["KINDS", "BatchTopK", "Gated", "JumpRelu", "Matryoshka", "ReluL1", "SaeSection", "TopK"]
