"""The repeated blocks of a network in the order of depth: what to freeze, and how far from the top a parameter is."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from mmcl.runtime.errors import MmclError


def blocks(net: nn.Module) -> list[nn.Module]:
    """The residual or transformer blocks that ``net`` is a stack of, in the order in which they run.

    They are found by structure: the elements of the lists (``ModuleList``, ``Sequential``) of compound modules that
    hold most parameters, and where these elements are stages, the elements of theirs. Empty for a network without.
    """
    return [block for element in _stack(net) for block in _blocks_of_stage(element)]


def depths(net: nn.Module) -> dict[str, int]:
    """Depth of every parameter, by name: 0 before the first block (embeddings, stem), i in block i (from 1), and one
    more than there are blocks after the last (final norm, pooling, projection). What lies between two blocks, such as
    a downsampling, has the depth of the later one."""
    last = len(blocks(net))
    found: dict[str, int] = {}
    for path, module, depth in _walk(net):
        for name, _ in module.named_parameters(recurse=False):
            # A module's own parameters come before its children's, whenever it uses them: open_clip's projections
            # (`proj`, `text_projection`) stand beside the position embeddings, but are multiplied last.
            after = depth == 0 and name.endswith(("proj", "projection"))
            found[f"{path}.{name}".removeprefix(".")] = last + 1 if after else depth
    return found


def freeze(net: nn.Module, count: int) -> list[nn.Module]:
    """Keep what comes before the first block, and the first ``count`` blocks, from learning; 0 freezes nothing.

    Returns:
        The modules that have to stay in evaluation mode while ``net`` trains, so that their dropout is off and their
        running statistics stand still: set the ``training`` of each to False after every ``train()``.

    Raises:
        MmclError: ``net`` has fewer blocks.
    """
    if count == 0:
        return []
    there = {id(block) for block in blocks(net)}
    if count > len(there):
        has = f"has {len(there)}" if there else "is no stack of blocks"
        cure = f"at most {len(there)}" if there else "0, or freeze the whole tower with frozen: true"
        raise MmclError(f"freeze_blocks is {count}, but the network ({type(net).__name__}) {has}; give {cure}")
    depth_of = depths(net)
    for name, parameter in net.named_parameters():
        if depth_of[name] <= count:
            parameter.requires_grad_(False)
    still = []
    for _, module, depth in _walk(net):
        holds_blocks = any(id(part) in there for part in module.modules() if part is not module)
        # Leaving patches out (FLIP) is no property of the layers but a change of the image: it goes on.
        if depth <= count and not holds_blocks and type(module).__name__ != "PatchDropout":
            still.append(module)
    return still


def _walk(net: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Every module with its path and depth. Networks register their modules in the order in which they run."""
    number = {id(block): place for place, block in enumerate(blocks(net), start=1)}
    depth, inside = 0, ""
    for path, module in net.named_modules():
        if id(module) in number:
            depth, inside = number[id(module)], f"{path}."
        elif inside and not path.startswith(inside):
            depth, inside = depth + 1, ""
        # But embeddings are looked up before any block, though MPNet registers those of relative positions after them.
        yield path, module, 0 if isinstance(module, nn.Embedding) and not inside else depth


def _stack(module: nn.Module) -> list[nn.Module]:
    """The elements of the outermost lists of compound modules, of the one kind that the largest list holds."""
    lists = list(_outermost_lists(module))
    if not lists:
        return []
    kind = type(max(lists, key=lambda elements: sum(map(_size, elements)))[0])
    return [element for elements in lists if type(elements[0]) is kind for element in elements]


def _outermost_lists(module: nn.Module) -> Iterator[list[nn.Module]]:
    if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) and all(map(_is_compound, module)):
        yield list(module)
    else:
        for child in module.children():
            yield from _outermost_lists(child)


def _blocks_of_stage(element: nn.Module) -> list[nn.Module]:
    """The blocks of a stage; the element itself where it is no stage but a block."""
    inner = _stack(element)
    return inner if 2 * sum(map(_size, inner)) > _size(element) else [element]


def _is_compound(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
