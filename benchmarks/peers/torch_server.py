"""PyTorch as a contender: one training step of a TopK dictionary, by hand and by three libraries. Runs in their environment.

A step is what each library's own trainer does between two batches: forward, backward, its treatment of the decoder, Adam. None
of the features is dead, so the auxiliary losses cost nothing anywhere.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from protocol import Answer, serve
from torch import nn

Step = Callable[[torch.Tensor], None]


class Plain(nn.Module):
    """TopK in the few lines that one writes first."""

    def __init__(self, width: int, features: int, k: int) -> None:
        super().__init__()
        decoder = torch.randn(width, features)
        decoder /= decoder.norm(dim=0)
        self.encoder = nn.Linear(width, features)
        self.decoder = nn.Linear(features, width)
        self.encoder.weight.data, self.decoder.weight.data = decoder.t().clone(), decoder
        self.k = k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.relu(self.encoder(x - self.decoder.bias))
        values, indices = z.topk(self.k, dim=-1, sorted=False)
        return self.decoder(torch.zeros_like(z).scatter_(-1, indices, values))


def plain(width: int, features: int, k: int, fused: bool) -> Step:
    """PyTorch by hand, with unit decoder columns kept by the usual two lines."""
    model = Plain(width, features, k)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused)

    def step(x: torch.Tensor) -> None:
        (model(x) - x).pow(2).mean().backward()
        weight = model.decoder.weight
        with torch.no_grad():
            assert weight.grad is not None
            weight.grad -= (weight.grad * weight).sum(dim=0) * weight
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            weight /= weight.norm(dim=0)

    return step


def dictionary_learning(width: int, features: int, k: int) -> Step:
    """``TopKTrainer.update`` of dictionary_learning."""
    # The package imports nnsight for its buffers of language-model activations, which are not used here.
    stub = types.ModuleType("nnsight")
    stub.LanguageModel = object  # type: ignore[attr-defined]
    sys.modules.setdefault("nnsight", stub)
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=100_000, activation_dim=width, dict_size=features, k=k, layer=0, lm_name="", device="cpu"
    )
    taken = [0]

    def step(x: torch.Tensor) -> None:
        taken[0] += 1
        trainer.update(taken[0], x)

    return step


def sparsify(width: int, features: int, k: int) -> Step:
    """What the trainer of sparsify does with a ``SparseCoder`` between two batches."""
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    coder = SparseCoder(width, SparseCoderConfig(num_latents=features, k=k))
    optimiser = torch.optim.Adam(coder.parameters(), lr=1e-4)

    def step(x: torch.Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x)
        (out.fvu + out.auxk_loss / 32).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()

    return step


def sae_lens(width: int, features: int, k: int) -> Step:
    """What the trainer of SAELens does with a ``TopKTrainingSAE`` between two batches."""
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=width, d_sae=features, k=k, dtype="float32", device="cpu")
    )
    sae.train()
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-4)
    dead = torch.zeros(features, dtype=torch.bool)
    idle, fired = torch.zeros(features), torch.zeros(features)

    def step(x: torch.Tensor) -> None:
        output = sae.training_forward_pass(
            step_input=TrainStepInput(
                sae_in=x, dead_neuron_mask=dead, coefficients={}, n_training_steps=1, is_logging_step=False
            )
        )
        with torch.no_grad():
            firing = output.feature_acts.bool().float()
            idle.add_(1)
            idle[firing.sum(-2).bool()] = 0
            fired.add_(firing.sum(0))
        output.loss.backward()
        nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step


LIBRARIES: dict[str, Callable[[int, int, int], Step]] = {
    "torch": lambda *sizes: plain(*sizes, fused=False),
    "torch, fused Adam": lambda *sizes: plain(*sizes, fused=True),
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
    "SAELens": sae_lens,
}


class Server:
    """The requests that this contender answers."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}
        self.work: Mapping[str, Any] = {}
        self.x = torch.empty(0)

    def build(self, request: Mapping[str, Any]) -> Answer:
        self.work = request["work"]
        torch.set_num_threads(request["threads"])
        torch.manual_seed(self.work["seed"])
        self.x = torch.randn(self.work["batch"], self.work["width"])
        return {"threads": torch.get_num_threads(), "versions": {"torch": torch.__version__}}

    def step(self, request: Mapping[str, Any]) -> None:
        library = request["method"]
        if library not in self.steps:
            sizes = (self.work["width"], self.work["features"], self.work["k"])
            self.steps[library] = LIBRARIES[library](*sizes)
        self.steps[library](self.x)

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Answer | None]]:
        return {"build": self.build, "step": self.step}


if __name__ == "__main__":
    serve(Server().handlers())
