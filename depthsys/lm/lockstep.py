"""Work on many batches at once, for models whose layers are brought in to be used.

Work on one batch is written as *steps*: a generator that yields the number of the layer it needs
next, does what it wants with that layer, and returns what it has found. A whole model goes through
the steps of one batch after the other, and memory does not grow with the batches. Where the weights
of layers wait elsewhere (`depthsys.lm.hf.residence`), the steps of all batches go together, layer
by layer: each is brought in once for all of them, not once for each.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

from depthsys.lm.hf.blocks import Blocks

R = TypeVar("R")
Steps = Generator[int, None, R]


def finished(steps: Steps[R]) -> R:
    """What the steps find, all layers being there.

    Examples
    --------
    >>> def work():
    ...     yield 0
    ...     return "done"
    >>> finished(work())
    'done'
    """
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def one_by_one(works: Sequence[Steps[R]]) -> Steps[list[R]]:
    """Several works as one, one after the other."""
    found = []
    for work in works:
        found.append((yield from work))
    return found


def together(works: Sequence[Steps[R]]) -> Steps[list[R]]:
    """Several works as one that needs each layer once for all of them.

    Layers are served as a lift serves floors: upwards while a higher one is waited for, then
    downwards. All that wait for a layer go on before the next one is served, and those that want
    the same one again go on again.

    Examples
    --------
    >>> def work(*layers):
    ...     for layer in layers:
    ...         yield layer
    ...     return len(layers)
    >>> served = together([work(0, 1, 2, 2, 1), work(1, 2, 0)])
    >>> list(served)
    [0, 1, 2, 1, 0]
    """
    found: list[Any] = [None] * len(works)
    wants: dict[int, int] = {}

    def go_on(number: int) -> None:
        try:
            wants[number] = next(works[number])
        except StopIteration as end:
            found[number] = end.value
            wants.pop(number, None)

    try:
        for number in range(len(works)):
            go_on(number)
        floor, up = -1, True
        while wants:
            floor, up = _next_floor(set(wants.values()), floor, up)
            yield floor
            while here := [number for number, layer in wants.items() if layer == floor]:
                for number in here:
                    go_on(number)
    finally:
        for work in works:
            work.close()
    return found


def _next_floor(wanted: set[int], floor: int, up: bool) -> tuple[int, bool]:
    ahead = [layer for layer in wanted if (layer > floor if up else layer < floor)]
    if not ahead:
        ahead, up = list(wanted), not up
    return (min(ahead) if up else max(ahead)), up


def driven(blocks: Blocks, steps: Steps[R]) -> R:
    """What the steps find, each layer being brought in while it is wanted."""
    try:
        layer = next(steps)
        while True:
            with blocks.resident(layer):
                while (wanted := next(steps)) == layer:
                    pass
            layer = wanted
    except StopIteration as end:
        return end.value


def groups(sizes: Sequence[int], may_hold: Callable[[int], bool]) -> Iterator[list[int]]:
    """Numbers of batches that go in step: as many as may be held, and one at least.

    Examples
    --------
    >>> list(groups([3, 3, 3, 9], lambda size: size <= 6))
    [[0, 1], [2], [3]]
    """
    group: list[int] = []
    held = 0
    for number, size in enumerate(sizes):
        if group and not may_hold(held + size):
            yield group
            group, held = [], 0
        group.append(number)
        held += size
    if group:
        yield group
