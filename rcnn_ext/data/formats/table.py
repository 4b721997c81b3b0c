"""All formats by name."""

from __future__ import annotations

from rcnn_ext.config.data import FormatName
from rcnn_ext.data.formats import (
    coco,
    createml,
    csv_boxes,
    cvat,
    datumaro,
    global_wheat,
    imagefolder,
    kitti,
    label_studio,
    labelme,
    openimages,
    pennfudan,
    supervisely,
    synthetic,
    via,
    via_csv,
    visdrone,
    voc,
    widerface,
    yolo,
)
from rcnn_ext.data.formats.format import Format

# In the order in which a folder is compared with them: the plainest marks come first.
FORMATS: dict[FormatName, Format] = {
    "voc": voc.FORMAT,
    "pennfudan": pennfudan.FORMAT,
    # JSON and XML. All but COCO's files are told by their content, not their names.
    "cvat": cvat.FORMAT,
    "label_studio": label_studio.FORMAT,
    "labelme": labelme.FORMAT,
    "via": via.FORMAT,
    "supervisely": supervisely.FORMAT,
    "createml": createml.FORMAT,
    "datumaro": datumaro.FORMAT,
    "imagefolder": imagefolder.FORMAT,
    "coco": coco.FORMAT,
    # Text files, one per image. YOLO's come last, as its folders have the plainest names.
    "visdrone": visdrone.FORMAT,
    "kitti": kitti.FORMAT,
    "widerface": widerface.FORMAT,
    "yolo": yolo.FORMAT,
    # Tables and lists.
    "via_csv": via_csv.FORMAT,
    "openimages": openimages.FORMAT,
    "global_wheat": global_wheat.FORMAT,
    "csv": csv_boxes.FORMAT,
    # Made, not found.
    "synthetic": synthetic.FORMAT,
}
