"""A network seen in three parts: what its first blocks give, what the next ones make of it, and the rest.

Nothing is taken apart. The network's own forward runs, and hooks read what a block is given or gives, or put something
else in its place. So masks, positions and whatever else a forward does are right for any network with a list of blocks:
our own, the transformers library's, timm's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from kdhub.errors import CompatibilityError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


def stack(network: nn.Module) -> Sequence[nn.Module]:
    """Its blocks in order: its list of layers, or the stages of a network that has none.

    Raises:
        CompatibilityError: it has neither.
    """
    from torch import nn

    from kdhub_tasks.layers import blocks

    try:
        return blocks(network)
    except CompatibilityError:
        for part in network.modules():
            stages = [child for child in part.children() if isinstance(child, nn.Sequential)]
            if len(stages) > 1:
                return stages
        raise


class Split:
    """A network and two places between its blocks.

    `lower` is what block `lower` + 1 is given, so 0 is what the first one sees; `upper` is what block `upper` gives.
    Both are after whole blocks, (batch, width), (batch, positions, width) or (batch, channels, height, width).

    Args:
        lower: from 0; the middle if None. upper: from lower + 1; the last block if None.

    Raises:
        UsageError: places that are not there. CompatibilityError: the network has no blocks.
    """

    def __init__(self, network: nn.Module, lower: int | None = None, upper: int | None = None):
        self.network, self.blocks = network, list(stack(network))
        self.upper = len(self.blocks) if upper is None else upper
        self.lower = self.upper // 2 if lower is None else lower
        if not 0 <= self.lower < self.upper <= len(self.blocks):
            raise UsageError(
                f"a {type(network).__name__} of {len(self.blocks)} blocks cannot be split at {self.lower} and "
                f"{self.upper}",
                hint="the lower place is from 0, the upper one above it, up to the number of blocks",
            )

    @contextmanager
    def read(self) -> Iterator[None]:
        """While this is open, the network's signals also have `lower` and `upper`."""
        kept: dict[str, Tensor] = {}

        def tell(_: Any, __: Any, given: Any) -> Any:
            given.update(kept)
            kept.clear()
            return given

        with ExitStack() as hooks:
            hooks.enter_context(_removed(self._before(lambda own: kept.update(lower=own))))
            hooks.enter_context(_removed(self._after(lambda own: kept.update(upper=own))))
            hooks.enter_context(_removed(self.network.register_forward_hook(tell)))
            yield

    @contextmanager
    def replaced(self, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """While this is open, the blocks above `lower` see another state: `replace` is given their own and gives one of
        that shape. Gradients reach what `replace` computes with."""
        with _removed(self._before(replace)):
            yield

    def onward(self, inputs: Mapping[str, Tensor], replace: Callable[[Tensor], Tensor]) -> Tensor:
        """What `upper` is when `lower` is replaced."""
        kept: list[Tensor] = []
        with self.replaced(replace), _removed(self._after(kept.append)):
            self.network(inputs)
        return kept[0]

    def _before(self, see: Callable[[Tensor], Tensor | None]) -> Any:
        def hook(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            own = args[0] if args else kwargs["hidden_states"]
            new = see(own)
            if new is None:
                return None
            new = new.to(own.dtype)
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

        return self.blocks[self.lower].register_forward_pre_hook(hook, with_kwargs=True)

    def _after(self, see: Callable[[Tensor], Any]) -> Any:
        def hook(_: Any, __: Any, given: Any) -> None:
            see(given[0] if isinstance(given, tuple) else given)

        return self.blocks[self.upper - 1].register_forward_hook(hook)


class Chain:
    """A network as a chain of blocks, any stretch of which can be run alone.

    The network's own forward runs: blocks in front of the stretch are passed over, and it ends behind the last one that
    is wanted. What comes before the first block (patches, positions) belongs to a stretch from 0, and what comes after
    the last one (norm, head) to a stretch up to the end.

    Raises:
        CompatibilityError: the network has no blocks.
    """

    def __init__(self, network: nn.Module):
        self.network, self.blocks = network, list(stack(network))
        self._tupled: bool | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    def run(
        self, inputs: Mapping[str, Tensor], start: int = 0, end: int | None = None, state: Tensor | None = None
    ) -> Any:
        """What blocks `start` + 1 to `end` make of a state.

        Args:
            inputs: what the network takes; read where the stretch begins at 0.
            end: all blocks and the head if None.
            state: as block `start` gives it; not needed from 0.

        Returns:
            The state behind block `end`, or what the network gives.
        """
        given = (state,) if start and self.tupled(inputs) else state
        with ExitStack() as hooks:
            for block in self.blocks[:start]:
                hooks.enter_context(_passing(block, given))
            if end is not None:
                hooks.enter_context(_removed(self._at(end, _stop)))
            try:
                return self.network(inputs)
            except _Reached as reached:
                return reached.state

    def shapes(self, inputs: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
        """Of the state of one example: as the first block is given it, and behind each block."""
        import torch

        found: list[tuple[int, ...]] = []
        with ExitStack() as hooks, torch.no_grad(), _at_rest(self.network):
            for place in range(len(self) + 1):
                hooks.enter_context(_removed(self._at(place, lambda own: found.append(tuple(own.shape[1:])))))
            self.network(_one(inputs))
        return found

    def tupled(self, inputs: Mapping[str, Tensor]) -> bool:
        """Whether blocks give their state in a tuple."""
        import torch

        def note(_: Any, __: Any, given: Any) -> None:
            self._tupled = isinstance(given, tuple)
            raise _Reached(given)

        if self._tupled is None:
            with torch.no_grad(), _at_rest(self.network), suppress(_Reached):
                with _removed(self.blocks[0].register_forward_hook(note)):
                    self.network(_one(inputs))
        return bool(self._tupled)

    def owner(self, inputs: Mapping[str, Tensor]) -> Callable[[str], int]:
        """Which block a weight belongs to, by its name: that before the first block to the first, that behind the last
        to the last, buffers to the block of the weights beside them."""
        import torch

        names = {id(part): name for name, part in self.network.named_modules()}
        within = [f"{names[id(block)]}." for block in self.blocks]
        weights = {name: weight for name, weight in self.network.named_parameters()}
        with torch.enable_grad(), _at_rest(self.network), _trainable(weights.values()):
            first = self.run(_one(inputs), 0, 0)
            reached: Any = ()
            if first.requires_grad:
                reached = torch.autograd.grad(first.sum(), [*weights.values()], allow_unused=True)
        before = {name for name, gradient in zip(weights, reached) if gradient is not None}
        beside = {name.rpartition(".")[0] for name in before}

        def of(name: str) -> int:
            for number, prefix in enumerate(within):
                if name.startswith(prefix):
                    return number
            return 0 if name in before or name.rpartition(".")[0] in beside - {""} else len(self) - 1

        return of

    def _at(self, place: int, see: Callable[[Tensor], Any]) -> Any:
        """A hook where block `place` + 1 begins, or behind the last."""
        if place == 0:
            return self.blocks[0].register_forward_pre_hook(
                lambda _, args, kwargs: see(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
        return self.blocks[place - 1].register_forward_hook(
            lambda _, __, given: see(given[0] if isinstance(given, tuple) else given)
        )


class _Reached(Exception):  # noqa: N818 - no error
    """Ends a forward pass where nobody needs the rest."""

    def __init__(self, state: Tensor):
        super().__init__()
        self.state = state


def _one(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The first row of a batch."""
    return {name: value[:1] if getattr(value, "ndim", 0) else value for name, value in inputs.items()}


def _stop(state: Tensor) -> None:
    raise _Reached(state)


@contextmanager
def _passing(block: nn.Module, given: Any) -> Iterator[None]:
    """A block that gives this, whatever it is given."""
    block.forward = lambda *_, **__: given
    try:
        yield
    finally:
        del block.forward


@contextmanager
def _at_rest(network: nn.Module) -> Iterator[None]:
    """In eval mode, so that looking changes no statistics."""
    was = {part: part.training for part in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for part, training in was.items():
            part.training = training


@contextmanager
def _trainable(weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Weights that gradients reach."""
    before = [(weight, weight.requires_grad) for weight in weights]
    for weight, _ in before:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, was in before:
            weight.requires_grad_(was)


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    """The hook, until the end of the block."""
    try:
        yield
    finally:
        handle.remove()


def as_sequence(state: Tensor) -> Tensor:
    """(batch, positions, width) of a state of any shape; places of an image one row after the other."""
    if state.dim() == 2:
        return state.unsqueeze(1)
    return state.flatten(2).transpose(1, 2) if state.dim() == 4 else state


def as_state(sequence: Tensor, like: Tensor) -> Tensor:
    """A sequence in the shape of a state: as many positions, by `resized`."""
    sequence = resized(sequence, as_sequence(like).shape[1])
    return (sequence.transpose(1, 2) if like.dim() == 4 else sequence).reshape(like.shape)


def resized(sequence: Tensor, positions: int) -> Tensor:
    """With so many positions: means over neighbours, or each of them several times."""
    from torch.nn.functional import adaptive_avg_pool1d

    if sequence.shape[1] == positions:
        return sequence
    return adaptive_avg_pool1d(sequence.transpose(1, 2), positions).transpose(1, 2)
