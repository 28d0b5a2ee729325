"""The section ``[crosscoder]``: one dictionary for several views of the same configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from .section import Finding, Section
from .sections import Activations, GroundState, repeated, unfit_layers

if TYPE_CHECKING:
    from ..sae import SaeSection

Text = Annotated[str, Field(min_length=1)]


class Crosscoder(Section):
    """One dictionary for layers, training checkpoints and other runs together; none while all three lists are empty.

    A view is a layer of a network. The networks are this run's at the ``checkpoints`` and at the end, and those of ``runs``.
    """

    layers: tuple[str, ...] = Field(
        (),
        max_length=100,
        description="layers of every network that are views; empty, with checkpoints or runs: the last of activations.layers",
    )
    checkpoints: tuple[Annotated[int, Field(ge=0, le=1_000_000)], ...] = Field(
        (),
        max_length=100,
        description="steps of ground_state.checkpoints whose networks are views; the final network always is",
    )
    runs: tuple[Text, ...] = Field(
        (),
        max_length=100,
        description="other runs with the same lattice and network, whose ground states are views: names of runs in the same "
        "results, or paths to runs relative to the spec (./x, ../x, /x)",
    )
    features: int = Field(0, ge=0, le=2**21, description="features of the crosscoder; 0: sae.features")
    k: int = Field(0, ge=0, le=4096, description="its active features per input; 0: sae.k")

    @property
    def wanted(self) -> bool:
        """Whether there is a crosscoder at all."""
        return bool(self.layers or self.checkpoints or self.runs)

    @property
    def n_networks(self) -> int:
        """This run's at the checkpoints and at the end, and those of the other runs."""
        return len(self.checkpoints) + 1 + len(self.runs)

    @property
    def n_views(self) -> int:
        """Networks times layers."""
        return self.n_networks * len(self.layers)

    def record(self, sae: SaeSection) -> SaeSection:
        """What the crosscoder is trained by: ``[sae]``, with the features and k given here."""
        changes = {name: getattr(self, name) for name in ("features", "k") if getattr(self, name)}
        return sae.model_copy(update=changes) if changes else sae

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        activations = sections.get("activations")
        if not self.wanted or self.layers or not isinstance(activations, Activations):
            return self
        return self.model_copy(update={"layers": activations.layers[-1:]})

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        if not self.wanted:
            yield from (Finding(*idle) for idle in self._idle())
            return
        key = next(name for name in ("runs", "checkpoints", "layers") if getattr(self, name))
        dynamics: Any = sections.get("dynamics")
        if dynamics is not None and dynamics.wanted:
            what = "a crosscoder looks at ground states: leave [crosscoder] out, or set dynamics.duration = 0"
            yield Finding(key, what)
        for name in ("layers", "runs"):
            yield from repeated(name, getattr(self, name))
        if self.n_views == 1:
            what = "one view needs no crosscoder: name a second layer, or crosscoder.checkpoints, or crosscoder.runs"
            yield Finding(key, what)
        yield from self._layer_findings(sections)
        yield from self._checkpoint_findings(sections)
        yield from self._dictionary_findings(sections)

    def _idle(self) -> Iterator[tuple[str, str]]:
        """What is said of a crosscoder that there is none of."""
        for name in ("features", "k"):
            if getattr(self, name):
                yield name, "there is no crosscoder: name views in crosscoder.layers, checkpoints or runs"

    def _layer_findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        state, sae = sections.get("state"), sections.get("sae")
        if state is None:
            return
        yield from unfit_layers(self.layers, state)
        together = len(self.layers) > 1 and "head" in self.layers
        if together and getattr(sae, "input", "pooled") == "token":
            what = 'the head has one token, the sum over all: leave it out, or set sae.input = "pooled"'
            yield Finding(f"layers[{self.layers.index('head')}]", what)

    def _checkpoint_findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        training = sections.get("ground_state")
        if not isinstance(training, GroundState):
            return
        for index, step in enumerate(self.checkpoints):
            if step in self.checkpoints[:index]:
                yield Finding(f"checkpoints[{index}]", f"{step} is listed twice")
            elif step == training.steps:
                what = f"the network after step {step} is the final one, which is a view anyway: leave it out"
                yield Finding(f"checkpoints[{index}]", what)
            elif step not in training.checkpoints:
                what = f"{step} is not listed in ground_state.checkpoints: add it there"
                yield Finding(f"checkpoints[{index}]", what)

    def _dictionary_findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        sae: Any = sections.get("sae")
        if sae is None:
            return
        if self.k and "k" not in type(sae).model_fields:
            yield Finding("k", f'sae.kind = "{sae.kind}" has no number of active features: leave it out')
        elif self.features or self.k:
            own: Any = self.record(sae)
            if "k" in type(sae).model_fields and own.k > own.features:
                what = f"{own.k} active features of {own.features}: k must not exceed features"
                yield Finding("k" if self.k else "features", what)
