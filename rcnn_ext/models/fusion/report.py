"""What preparation changed in a model, and what it left, with the reason."""

from __future__ import annotations

import dataclasses
from collections import Counter


@dataclasses.dataclass(frozen=True)
class FusionReport:
    """What ``fuse_model`` or ``prepare_for_inference`` changed.

    Attributes:
        packed: Names of the layers that compute with packed weights.
        fused: Name of each module that runs its layers together to the name of its class.
        kept: Name of each layer or module that computes as before to the reason; "" is the whole
            model.
        packed_bytes: Bytes of the packed copies of weights, beside the weights themselves.
    """

    packed: tuple[str, ...] = ()
    fused: dict[str, str] = dataclasses.field(default_factory=dict)
    kept: dict[str, str] = dataclasses.field(default_factory=dict)
    packed_bytes: int = 0

    def __str__(self) -> str:
        lines = [
            f"{len(self.packed)} layers compute with packed weights "
            f"({self.packed_bytes / 2**20:.1f} MiB beside the weights themselves)"
        ]
        if self.fused:
            kinds = Counter(self.fused.values()).most_common()
            lines.append(
                f"{len(self.fused)} modules run their layers together: "
                + ", ".join(f"{count} {kind}" for kind, count in kinds)
            )
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.kept.items():
            by_reason.setdefault(reason, []).append(name or "the whole model")
        for reason, names in by_reason.items():
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"as before: {shown} ({len(names)}): {reason}")
        return "\n".join(lines)
