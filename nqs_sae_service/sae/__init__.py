"""Sparse autoencoders: x = sum_i f_i d_i + b_d + error, with few features f_i active at a time.

``KINDS`` maps the ``kind`` of ``[sae]`` to its record; a new architecture is one file with its record and its training step.
"""

from __future__ import annotations

from .batchtopk import BatchTopK
from .components import Ica, Pca
from .frozen import FrozenDecoder, FrozenEncoder, SoftFrozenDecoder
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
    "frozen-decoder": FrozenDecoder,
    "soft-frozen-decoder": SoftFrozenDecoder,
    "frozen-encoder": FrozenEncoder,
    "pca": Pca,
    "ica": Ica,
}
__all__ = [
    "KINDS",
    "BatchTopK",
    "FrozenDecoder",
    "FrozenEncoder",
    "Gated",
    "Ica",
    "JumpRelu",
    "Matryoshka",
    "Pca",
    "ReluL1",
    "SaeSection",
    "SoftFrozenDecoder",
    "TopK",
]
