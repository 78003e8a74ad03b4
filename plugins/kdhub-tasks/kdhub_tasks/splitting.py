"""A network seen in three parts: what its first blocks give, what the next ones make of it, and the rest.

Nothing is taken apart. The network's own forward runs, and hooks read what a block is given or gives, or put something
else in its place. So masks, positions and whatever else a forward does are right for any network with a list of blocks:
our own, the transformers library's, timm's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
