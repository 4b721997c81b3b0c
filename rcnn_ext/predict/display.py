"""Detections in a notebook: the picture with boxes, and a table."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

from rcnn_ext.errors import UserError

if TYPE_CHECKING:
    from rcnn_ext.predict.detections import Detections

_MAX_ROWS = 20
# A notebook stores every picture that it shows.
_MAX_SIDE = 1024


def encoded_picture(found: Detections, file_format: str) -> bytes | None:
    """Return the picture with detections drawn, made small enough for a notebook.

    Args:
        found: The detections.
        file_format: ``PNG`` or ``JPEG``.

    Returns:
        The content of a file; None where the picture is gone, since a display must not fail.
    """
    try:
        drawn = found.draw()
    except UserError:
        return None
    drawn.thumbnail((_MAX_SIDE, _MAX_SIDE))
    content = io.BytesIO()
    drawn.save(content, file_format)
    return content.getvalue()


def detections_html(found: Detections) -> str:
    """Return the picture with detections drawn, and a table of the best of them."""
    parts = [f"<p>{escape(repr(found))}</p>"]
    content = encoded_picture(found, "JPEG")
    if content is not None:
        data = base64.b64encode(content).decode("ascii")
        parts.append(f'<img src="data:image/jpeg;base64,{data}" style="max-width: 100%">')
    if len(found):
        parts.append("<table><tr><th>name</th><th>score</th><th>x1, y1, x2, y2</th></tr>")
        for one in found[:_MAX_ROWS]:
            corners = ", ".join(f"{value:.1f}" for value in one.box)
            parts.append(
                f"<tr><td>{escape(one.name)}</td><td>{one.score:.2f}</td><td>{corners}</td></tr>"
            )
        parts.append("</table>")
    if len(found) > _MAX_ROWS:
        parts.append(f"<p>and {len(found) - _MAX_ROWS} more</p>")
    return "\n".join(parts)
