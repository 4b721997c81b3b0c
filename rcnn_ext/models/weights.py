"""Published weights: resolving their names and downloading them."""

from __future__ import annotations

from http.client import HTTPException
from pickle import UnpicklingError
from typing import Any

import torch
from torchvision.models._api import WeightsEnum

from rcnn_ext.errors import UserError


class DownloadError(UserError):
    """Published weights cannot be downloaded.

    Attributes:
        remedies: The error and what to do, without the alternative to these weights.
    """

    def __init__(self, remedies: str, instead: str) -> None:
        super().__init__(f"{remedies}, or pass {instead}")
        self.remedies = remedies


def resolve_weights(
    weights: WeightsEnum | str | None, kind: type[WeightsEnum]
) -> WeightsEnum | None:
    """Return the member of ``kind`` that ``weights`` means.

    Args:
        weights: A member, its name ("IMAGENET1K_V1", "DEFAULT", with or without the name of the
            enumeration before it), or None.
        kind: The enumeration of weights of one model of torchvision.

    Raises:
        UserError: ``weights`` is none of these.
    """
    if weights is None or isinstance(weights, kind):
        return weights
    name = weights.removeprefix(f"{kind.__name__}.") if isinstance(weights, str) else None
    if name in kind.__members__:
        return kind[name]
    raise UserError(
        f"there are no weights {weights!r} for this model; {kind.__name__} has "
        f"{', '.join(kind.__members__)}"
    )


def fetch_state_dict(weights: WeightsEnum, *, progress: bool, instead: str) -> dict[str, Any]:
    """Return the state dict of ``weights``, from the cache of torch.hub or downloaded into it.

    Args:
        weights: Weights to fetch.
        progress: Show a progress bar while downloading.
        instead: Alternative without a network, for the message.

    Raises:
        DownloadError: It cannot be downloaded.
        UserError: The file is damaged.
    """
    cache = f"{torch.hub.get_dir()}/checkpoints"
    try:
        return weights.get_state_dict(progress=progress, check_hash=True)
    except (OSError, HTTPException) as error:
        raise DownloadError(
            f"the download of {weights!r} failed ({error}). Check the network, or put the file "
            f"from {weights.url} into {cache}",
            instead,
        ) from error
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise UserError(
            f"the file of {weights!r} is damaged ({error}). Delete it from {cache} and try again"
        ) from error
