"""A call of an operator, to compare emulated kernels with the references and with a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        name: the id of the test.
        make: gives the arguments; those that are floating maps or boxes and want a derivative have
            ``requires_grad``.
        call: gives the results; their derivatives are compared too.
        exact: the reference gives the same bits.
        exact_on_device: a device gives the same bits as the emulator.
        tolerance: absolute and relative, where bits may differ.
    """

    name: str
    make: Callable[[], tuple[Tensor, ...]]
    call: Callable[..., Tensor]
    exact: bool = False
    exact_on_device: bool = True
    tolerance: float = field(default=2e-5)

    def run(self, device: str = "cpu", for_reference: bool = False) -> tuple[Tensor, ...]:
        """The result and the gradient of every argument that wants one, on the CPU.

        Args:
            device: to run on.
            for_reference: the implementation refuses RoIs of no image, for which the CUDA kernels
                give zeros; it gets RoIs far outside of the map instead.
        """
        # Where the random numbers are made does not matter: on the CPU, from one seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            made = self.make()
            if for_reference and made[-1].dim() == 2 and made[-1].shape[1] == 5:
                made = (*made[:-1], _outside_instead_of_no_image(made[-1], len(made[0])))
            arguments = [
                a.detach().to(device).requires_grad_(a.requires_grad) for a in made
            ]  # leaves, in the layout they were made in
            result = self.call(*arguments)
            wanted = [a for a in arguments if a.requires_grad]
            grads: tuple[Tensor, ...] = ()
            if wanted and result.requires_grad:
                upstream = torch.randn(result.shape, dtype=torch.float64).to(result)
                grads = torch.autograd.grad(result, wanted, upstream)
        return tuple(t.detach().cpu() for t in (result, *grads))


def _outside_instead_of_no_image(rois: Tensor, images: int) -> Tensor:
    bad = (rois[:, :1] < 0) | (rois[:, :1] >= images)
    return torch.where(bad, torch.tensor([0.0, -9e3, -9e3, -8e3, -8e3]), rois)


def boxes(count: int, size: float = 100.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes ``[count, 4]`` that overlap a good deal, two in five equal to others."""
    low = torch.rand(count, 2) * size
    made = torch.cat([low, low + 1 + torch.rand(count, 2) * size / 4], dim=1).to(dtype)
    made[count * 3 // 5 :] = made[: count - count * 3 // 5].clone()
    return made
