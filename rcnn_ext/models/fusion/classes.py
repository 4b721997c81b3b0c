"""Layers that compute otherwise: the same objects, of a class derived from their own."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import nn


class FusedLayer:
    """Base of what a class is mixed with to compute its forward pass otherwise.

    Parameters, submodules, their names and ``isinstance`` stay as they were, so that checkpoints
    are not concerned; copies and pickles are of the derived class too.
    """

    # The class that was derived from, and what it was mixed with.
    fused_base: ClassVar[type[nn.Module]]
    fused_mixin: ClassVar[type[FusedLayer]]

    def layers_packed_late(self) -> list[nn.Module]:
        """Return the layers inside that may never need packed weights of their own."""
        return []

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _new_layer, (self.fused_mixin, self.fused_base), self.__dict__


def fuse_class(layer: Any, mixin: type[FusedLayer]) -> None:
    """Derive the class of a layer from ``mixin`` and its own, in place."""
    layer.__class__ = _derive(mixin, type(layer))


def restore_classes(module: nn.Module) -> None:
    """Undo ``fuse_class`` in all layers of a module, in place."""
    for layer in module.modules():
        if isinstance(layer, FusedLayer):
            for name in [name for name in vars(layer) if name.startswith("_fused_")]:
                delattr(layer, name)
            cast(Any, layer).__class__ = layer.fused_base


def is_unhooked(*layers: nn.Module) -> bool:
    """Return whether the layers have no hooks and their own forward.

    Then nobody notices that what they are called with, or return, does not exist.
    """
    return not any(
        layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__
        for layer in layers
    )


# By what was mixed, since a class of its own for each layer would make torch.compile start anew.
_derived: dict[tuple[type[FusedLayer], type[nn.Module]], Any] = {}


def _derive(mixin: type[FusedLayer], base: type[nn.Module]) -> Any:
    if (mixin, base) not in _derived:
        # Name and module of the base, so that messages and torch.fx take the layer for what it was.
        names: dict[str, Any] = {"__module__": base.__module__, "__qualname__": base.__qualname__}
        names.update(fused_base=base, fused_mixin=mixin)
        _derived.setdefault((mixin, base), type(base.__name__, (mixin, base), names))
    return _derived[mixin, base]


def _new_layer(mixin: type[FusedLayer], base: type[nn.Module]) -> nn.Module:
    derived = _derive(mixin, base)
    return cast(nn.Module, derived.__new__(derived))
