"""Keys that recipes had before 0.1.0, and what they are called now."""

from __future__ import annotations

_RENAMED = {
    "data.csv.normalised": "data.csv.normalized",
    "data.on_problem": "data.on_error",
    "evaluation.every": "evaluation.val_every",
    "evaluation.min_gain": "evaluation.min_delta",
    "model.checkpoint_layers": "model.checkpoint_stages",
    "optimizer.accumulate": "optimizer.accumulate_grad_batches",
    "optimizer.frozen": "optimizer.freeze",
    "optimizer.lr_of": "optimizer.lr_overrides",
    "proposals": "selective_search",
    "refine.learns": "refine.trainable",
    "runtime.not_finite": "runtime.on_nan",
    "runtime.tensorboard": "runtime.loggers (a list: [csv] for false)",
}

# The second phase has an optimizer and a schedule of its own, with the same keys.
_REFINE = "refine."


def renamed_key(key: str) -> str | None:
    """Return the present name of a key.

    Args:
        key: The dotted key, as it stands in a recipe.

    Returns:
        The dotted key that replaced it, with its values where those changed too; None if it never
        was a key.
    """
    if key in _RENAMED:
        return _RENAMED[key]
    if key.startswith(_REFINE) and key.removeprefix(_REFINE) in _RENAMED:
        return _REFINE + _RENAMED[key.removeprefix(_REFINE)]
    return None
