"""COCO-like data streamed from the Hugging Face Hub, shared by processes and their workers.

A row has a picture and ``objects``, lists of boxes and classes, as ``detection-datasets/coco`` and
others do. Needs the extra ``hf``.
"""

from rcnn_ext.data.hub.check import check_stream
from rcnn_ext.data.hub.copy import copy_split
from rcnn_ext.data.hub.split import HubSplit, open_stream, stream_splits
from rcnn_ext.data.hub.stream import HubStream, stream_loader

__all__ = [
    "HubSplit",
    "HubStream",
    "check_stream",
    "copy_split",
    "open_stream",
    "stream_loader",
    "stream_splits",
]
