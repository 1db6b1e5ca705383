"""One loss a sample, in one tensor: all inner products from a single backward pass."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..losses import instance_names, split_instances
from .base import Engine, Request
from .choice import Auto
from .ghost import Ghost
from .per_loss import PerLossGradients
from .samples.gradients import Arrived
from .samples.layout import Layout
from .samples.passes import Samples
from .samples.pieces import sample_piece_of
from .samples.probe import Deltas, probe
from .samples.shared import PerSample
from .samples.sites import Site, Sites, Target, known_uses, sites_of
from .uses import Use

_MANY = 1000
"""So many structures are remembered at most: shapes may change from batch to batch."""


class Instances(Engine):
    r"""Gramian and direction of the losses of N samples, given as one tensor, by one backward pass of their sum.

    Where samples do not mix, what arrives at a layer from the sum of all losses arrives at each of its rows from the
    losses of one sample. With these :math:`\delta_n` and the inputs :math:`a_n`, the gradients of a linear layer have
    the inner products :math:`\langle \delta_n, \delta_m \rangle \langle a_n, a_m \rangle`, and the direction is
    :math:`\sum_n w_n \delta_n a_n^\top`. Linear layers, convolutions and embeddings with several rows a sample are
    served in the same way, biases, the affine parameters of normalisations, and what is broadcast over the samples.
    A point of the graph that depends on parameters alone and is used like one (a weight made of others, the
    exponential of a scale) is served too, and what it is made of is differentiated from there. Parameters that are
    used in yet another way get one pass a loss.

    Handing over a tensor declares that samples do not mix. Once for each structure of the graph it is looked at: half
    of the losses must leave what arrives for the other samples exactly zero. That also tells which rows are whose.
    Missed are single samples that mix within a half, and hooks and custom Functions that mix the gradients of all
    losses, which they see at once, such as by clipping their norm. Hooks on nodes (``grad_fn.register_hook``) and on
    views of a weight do not act on gradients that are not formed.

    Guarantees:
        the numbers of ``Loop`` on the losses one by one up to rounding: sums within a sample are float64.

    Args:
        asked: The engine for losses that are not one tensor. If it is neither ``Auto`` nor ``Ghost``, it gets the
            losses one by one.

    Raises:
        TypeError: ``asked`` needs a callable.
        RuntimeError: Samples mix, BatchNorm is in train mode, or a loss depends on a reentrant checkpoint.

    Cost:
        One backward pass that leaves the weights out; two where the structure of the graph is new, and until every
        layer has been reached; K times as many for losses ``(N, K)``. ``N^2`` operations for each input and output of
        a layer, and no more than for each of its parameters with several rows a sample; one product a layer for the
        direction. Where the gradients of samples are formed to multiply them, it is 2^24 numbers of them at a time.

    References:
        Goodfellow, Efficient per-example gradient computations (arXiv:1510.01799).
    """

    def __init__(self, asked: Engine) -> None:
        self._asked = asked
        self._known: dict[object, tuple[Layout | None, ...]] = {}
        self._probes = 0

    @property
    def forms_rows(self) -> bool:
        """Whether the user asked for an engine that forms the gradient of each loss."""
        return not isinstance(self._asked, Auto | Ghost)

    def differentiate(self, request: Request) -> PerLossGradients:
        losses = request.losses
        request = replace(request, sticky=False)  # that samples share a head does not mean that tasks do
        if self._asked.needs_callable or not isinstance(losses, Tensor):
            raise TypeError(
                f"MultiObjectiveOptimizer: `engine` must not need a callable for losses that are one tensor, got "
                f"{type(self._asked).__name__}. Use engine='auto'."
            )
        if self.forms_rows or request.rows or len(losses) == 1:
            return self._asked.differentiate(replace(request, losses=split_instances(losses)))
        return self._solve(Samples(request, losses), losses)

    def _solve(self, samples: Samples, losses: Tensor) -> PerLossGradients:
        uses = known_uses(samples.graph, samples.shared, samples.count)
        plain = samples.plain()
        sites, deltas = self._arrived(samples, uses)

        def arrivals(own: list[Site]) -> list[Arrived]:
            return [Arrived(use, deltas[use.edge], layout) for use, layout in own]

        points = {point: arrivals(own) for point, own in sites.points.items()}
        rest = samples.rows(sites.rest, points, sites.pulled)
        pieces = [sample_piece_of(leaf, arrivals(own)) for leaf, own in sites.matched.items()]
        shared = PerSample(pieces, rest, samples.count, samples.each)
        names = instance_names(losses)
        values = losses.detach().reshape(-1).to(torch.float64, copy=True)
        return PerLossGradients(names, names, values, shared, plain, _how(samples, sites))

    def _arrived(self, samples: Samples, uses: Mapping[Target, list[Use]]) -> tuple[Sites, Deltas]:
        """What arrives at the sites of parameters, from a probe where the structure of the graph is new."""
        every = [use for own in uses.values() for use in own]
        places = {node: place for place, node in enumerate(samples.graph.names)}
        structure = (
            (samples.count, samples.each, frozenset(samples.graph.names.values())),
            tuple((use.key, places[use.node], tuple(use.node._input_metadata[0].shape)) for use in every),
        )
        known = self._known.get(structure)
        if known is not None or not every:
            layouts = dict(zip(every, known or (), strict=True))
            sites = sites_of(samples.graph, samples.shared, uses, layouts, samples.request.names)
            edges = sites.edges()
            return sites, samples.deltas(edges, last=not (sites.rest or sites.pulled))
        self._probes += 1
        edges = list(dict.fromkeys(use.edge for use in every))
        found = probe(every, samples.count, self._probes, lambda members: samples.deltas(edges, members))
        sites = sites_of(samples.graph, samples.shared, uses, found.layouts, samples.request.names)
        if found.is_conclusive:
            if len(self._known) >= _MANY:
                self._known.clear()
            self._known[structure] = tuple(found.layouts[use] for use in every)
        return sites, found.deltas


def _how(samples: Samples, sites: Sites) -> str:
    passes = "one backward pass" if samples.each == 1 else f"{samples.each} backward passes"
    how = f"ghost: {passes} for {samples.count} samples"
    if sites.pulled:
        how += f", {len(sites.pulled)} of {len(samples.shared)} parameters by way of what is made of them"
    if sites.rest:
        how += f", {len(sites.rest)} of {len(samples.shared)} parameters by a pass a loss"
    return how
