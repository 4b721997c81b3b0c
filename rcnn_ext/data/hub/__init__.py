"""COCO-like data streamed from the Hugging Face Hub, shared by processes and their workers.

A row has a picture and ``objects``, lists of boxes and classes, as ``detection-datasets/coco`` and
others do. Needs the extra ``hf``.
"""

from .check import check_stream
from .copy import copy_split
from .split import HubSplit, open_stream, stream_splits
from .stream import HubStream, stream_loader

__all__ = [
    "HubSplit",
    "HubStream",
    "check_stream",
    "copy_split",
    "open_stream",
    "stream_loader",
    "stream_splits",
]
