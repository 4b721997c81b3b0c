"""One tiny data set in layouts of tables and text files, as tools and benchmarks write them.

The images and boxes are those of :mod:`tests.helpers.layouts`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.helpers.layouts import BOX, CLASSES, COUNT, pictures, yolo_labels

X1, Y1, X2, Y2 = BOX
WIDTH, HEIGHT = 40, 20
SPLITS = (("train", range(4)), ("val", range(4, 6)))


def write_rows(path: Path, rows: Iterable[Sequence[object]], header: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if header is not None:
            writer.writerow(header.split(","))
        writer.writerows(rows)


def kaggle(root: Path) -> None:
    pictures(root / "train")
    rows = [
        (f"p{n}", WIDTH, HEIGHT, str([float(X1), float(Y1), X2 - X1, Y2 - Y1]), CLASSES[n % 2])
        for n in range(COUNT)
    ]
    write_rows(root / "train.csv", rows, "image_id,width,height,bbox,class")


def retinanet(root: Path) -> None:
    for split, numbers in SPLITS:
        pictures(root / "images", numbers)
        rows = [(f"images/p{n}.png", X1, Y1, X2, Y2, CLASSES[n % 2]) for n in numbers]
        write_rows(root / f"{split}.csv", rows)
    write_rows(root / "classes.csv", [(name, n) for n, name in enumerate(CLASSES)])


def roboflow_retinanet(root: Path) -> None:
    for split, numbers in (("train", range(4)), ("valid", range(4, 6))):
        pictures(root / split, numbers)
        rows = [(f"p{n}.png", X1, Y1, X2, Y2, CLASSES[n % 2]) for n in numbers]
        write_rows(root / split / "_annotations.csv", rows)
        write_rows(root / split / "_classes.csv", [(name, n) for n, name in enumerate(CLASSES)])


def tensorflow(root: Path) -> None:
    for name, numbers in (("train", range(4)), ("test", range(4, 6))):
        pictures(root / "images" / name, numbers)
        rows = [(f"p{n}.png", WIDTH, HEIGHT, CLASSES[n % 2], X1, Y1, X2, Y2) for n in numbers]
        header = "filename,width,height,class,xmin,ymin,xmax,ymax"
        write_rows(root / f"{name}_labels.csv", rows, header)


def tensorflow_normalized(root: Path) -> None:
    pictures(root / "images")
    rows = [
        (f"p{n}.png", X1 / WIDTH, X2 / WIDTH, Y1 / HEIGHT, Y2 / HEIGHT, CLASSES[n % 2])
        for n in range(COUNT)
    ]
    write_rows(root / "labels.csv", rows, "filename,xmin,xmax,ymin,ymax,class")


def automl(root: Path) -> None:
    pictures(root / "images")
    split = {name.upper().replace("VAL", "VALIDATION"): numbers for name, numbers in SPLITS}
    rows = [
        (
            *(name, f"gs://bucket/images/p{n}.png", CLASSES[n % 2]),
            *(X1 / WIDTH, Y1 / HEIGHT, "", "", X2 / WIDTH, Y2 / HEIGHT, "", ""),
        )
        for name, numbers in split.items()
        for n in numbers
    ]
    write_rows(root / "export.csv", rows)


def _open_images_row(number: int) -> tuple[object, ...]:
    box = (X1 / WIDTH, X2 / WIDTH, Y1 / HEIGHT, Y2 / HEIGHT)
    return f"p{number}", "xclick", f"/m/0{number % 2}", 1, *box, 0, 0, 0, 0, 0


OPEN_IMAGES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,"
    "IsDepiction,IsInside"
)


def open_images(root: Path) -> None:
    for split, numbers in (("train", range(4)), ("validation", range(4, 6))):
        pictures(root / split, numbers)
        prefix = "oidv6-" if split == "train" else ""
        path = root / f"{prefix}{split}-annotations-bbox.csv"
        write_rows(path, map(_open_images_row, numbers), OPEN_IMAGES)
    names = [(f"/m/0{n}", name) for n, name in enumerate(CLASSES)]
    write_rows(root / "class-descriptions-boxable.csv", names)


def open_images_fiftyone(root: Path) -> None:
    for split, numbers in (("train", range(4)), ("validation", range(4, 6))):
        pictures(root / split / "data", numbers)
        path = root / split / "labels" / "detections.csv"
        write_rows(path, map(_open_images_row, numbers), OPEN_IMAGES)
        names = [(f"/m/0{n}", name) for n, name in enumerate(CLASSES)]
        write_rows(root / split / "metadata" / "classes.csv", names)


def open_images_subset(root: Path) -> None:
    pictures(root / "images")
    rows = [(*_open_images_row(n), "train" if n < 4 else "validation") for n in range(COUNT)]
    write_rows(root / "boxes.csv", rows, f"{OPEN_IMAGES},Subset")
    names = [("LabelName", "DisplayName"), *((f"/m/0{n}", c) for n, c in enumerate(CLASSES))]
    write_rows(root / "oidv7-class-descriptions.csv", names)


def via_csv(root: Path) -> None:
    pictures(root)
    shapes = [
        {"name": "rect", "x": X1, "y": Y1, "width": X2 - X1, "height": Y2 - Y1},
        {
            "name": "polygon",
            "all_points_x": [X1, X2, X2, X1],
            "all_points_y": [Y1, Y1, Y2, Y2],
        },
        {"name": "ellipse", "cx": 20, "cy": 10, "rx": 10, "ry": 6, "theta": 0},
    ]
    rows = [
        (
            *(f"p{n}.png", 900, '{"caption":""}', 1, 0),
            *(json.dumps(shapes[n % 3]), json.dumps({"type": CLASSES[n % 2]})),
        )
        for n in range(COUNT)
    ]
    header = (
        "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"
        "region_attributes"
    )
    write_rows(root / "via_project_csv.csv", rows, header)


def roboflow_yolo(root: Path) -> None:
    for name, numbers in (("train", range(4)), ("valid", range(4, 6))):
        pictures(root / name / "images", numbers)
        yolo_labels(root / name / "labels", numbers)
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n"
        "names: ['cat', 'dog']\n\nroboflow:\n  workspace: x\n  project: y\n  version: 1\n"
    )
    (root / "README.roboflow.txt").write_text("2 classes\n")


def cvat_ultralytics(root: Path) -> None:
    for name, numbers in (("train", range(4)), ("val", range(4, 6))):
        pictures(root / "images" / name, numbers)
        yolo_labels(root / "labels" / name, numbers)
        lines = "".join(f"data/images/{name}/p{n}.png\n" for n in numbers)
        (root / f"{name}.txt").write_text(lines)
    (root / "data.yaml").write_text(
        "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\nval: val.txt\n"
    )


def windows_yolo(root: Path) -> None:
    pictures(root / "images")
    yolo_labels(root / "labels")
    lines = "".join(f"D:\\data\\animals\\images\\P{n}.PNG\r\n" for n in range(COUNT))
    (root / "train.txt").write_bytes(lines.encode("utf-16"))
    (root / "data.yaml").write_text(
        "path: D:\\data\\animals\ntrain: train.txt\nnames: [cat, dog]\n"
    )


def colab_yolo(root: Path) -> None:
    pictures(root / "train" / "images")
    yolo_labels(root / "train" / "labels")
    (root / "data.yaml").write_text(
        "train: /content/drive/animals/train/images\nnames: [cat, dog]\n"
    )


def _yolo_lines(root: Path, line: Callable[[int], str], yaml: str = "") -> None:
    pictures(root / "images" / "train")
    (root / "labels" / "train").mkdir(parents=True)
    for n in range(COUNT):
        (root / "labels" / "train" / f"p{n}.txt").write_text(line(n))
    text = f"train: images/train\nnames: [cat, dog]\n{yaml}"
    (root / "data.yaml").write_text(text)


def yolo_segments(root: Path) -> None:
    _yolo_lines(root, lambda n: f"{n % 2} 0.25 0.2 0.75 0.2 0.75 0.8 0.5 0.7 0.25 0.8\n")


def yolo_oriented(root: Path) -> None:
    _yolo_lines(root, lambda n: f"{n % 2} 0.5 0.2 0.75 0.5 0.5 0.8 0.25 0.5\n")


def yolo_pose(root: Path) -> None:
    line = "0.5 0.5 0.5 0.6 0.3 0.3 2 0.4 0.4 1 0 0 0"
    _yolo_lines(root, lambda n: f"{n % 2} {line}\n", "kpt_shape: [3, 3]\n")


def yolo_pose_flat(root: Path) -> None:
    _yolo_lines(root, lambda n: f"{n % 2} 0.5 0.5 0.5 0.6 0.3 0.3 0.4 0.4\n", "kpt_shape: [2, 2]\n")


def kitti_lines(number: int) -> str:
    box = f"{X1:.2f} {Y1:.2f} {X2:.2f} {Y2:.2f}"
    return f"{CLASSES[number % 2]} 0.00 0 -1.57 {box} 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"


def kitti(root: Path) -> None:
    pictures(root / "training" / "image_2")
    (root / "training" / "label_2").mkdir()
    for n in range(COUNT):
        (root / "training" / "label_2" / f"p{n}.txt").write_text(kitti_lines(n))


def global_wheat_2020(root: Path) -> None:
    pictures(root / "train", range(3))
    pictures(root / "test", range(3, 5))
    boxes = [(0, [X1, Y1, X2 - X1, Y2 - Y1]), (0, [1, 2, 4, 7]), (1, [X1, Y1, X2 - X1, Y2 - Y1])]
    rows = [(f"p{n}", WIDTH, HEIGHT, str([float(v) for v in box]), "usask_1") for n, box in boxes]
    write_rows(root / "train.csv", rows, "image_id,width,height,bbox,source")
    write_rows(
        root / "sample_submission.csv", [("p3", "1.0 0 0 50 50")], "image_id,PredictionString"
    )


def global_wheat_2021(root: Path) -> None:
    pictures(root / "images", range(5))
    boxes = f"{X1} {Y1} {X2} {Y2}"
    rows = [
        ("p0.png", f"{boxes};1 2 5 9", "Arvalis_1"),
        ("p1.png", boxes, "Arvalis_1"),
        ("p2.png", "no_box", "Arvalis_1"),
    ]
    write_rows(root / "competition_train.csv", rows, "image_name,BoxesString,domain")
    for n, name in ((3, "val"), (4, "test")):
        row = (f"p{n}.png", boxes, "UQ_1")
        write_rows(root / f"competition_{name}.csv", [row], "image_name,BoxesString,domain")


def visdrone(root: Path) -> None:
    car = f"{X1},{Y1},{X2 - X1},{Y2 - Y1},1,4,0,1"
    texts = {
        "train": {
            0: f"{car}\n1,2,5,5,0,4,0,0\n0,0,8,4,0,0,0,0\n8,9,5,5,0,11,0,0\n",
            1: "1,2,9,9,1,9,1,0\n",
        },
        "val": {2: f"{car},\n"},
    }
    for split, files in texts.items():
        folder = root / f"VisDrone2019-DET-{split}"
        pictures(folder / "images", list(files))
        (folder / "annotations").mkdir()
        for n, text in files.items():
            (folder / "annotations" / f"p{n}.txt").write_text(text)
    pictures(root / "VisDrone2019-DET-test-challenge" / "images", [3])


def widerface(root: Path) -> None:
    face = f"{X1} {Y1} {X2 - X1} {Y2 - Y1} 0 0 0 0 0 0"
    for split, numbers in (("train", range(3)), ("val", [3]), ("test", [4])):
        pictures(root / f"WIDER_{split}" / "images" / "0--Parade", numbers)
    folder = root / "wider_face_split"
    folder.mkdir()
    (folder / "wider_face_train_bbx_gt.txt").write_text(
        f"0--Parade/p0.png\n2\n{face} \n1 2 5 5 2 0 0 1 2 1 \n"
        f"0--Parade/p1.png\n0\n0 0 0 0 0 0 0 0 0 0 \n0--Parade/p2.png\n1\n{face} \n"
    )
    (folder / "wider_face_val_bbx_gt.txt").write_text(f"0--Parade/p3.png\n1\n{face} \n")
    (folder / "wider_face_test_filelist.txt").write_text("0--Parade/p4.png\n")


# The format, and how many images each split has.
TOOLS: dict[str, tuple[Callable[[Path], None], str, dict[str, int]]] = {
    "Kaggle": (kaggle, "csv", {"train": COUNT}),
    "RetinaNet": (retinanet, "csv", {"train": 4, "val": 2}),
    "Roboflow RetinaNet": (roboflow_retinanet, "csv", {"train": 4, "val": 2}),
    "TensorFlow": (tensorflow, "csv", {"train": 4, "test": 2}),
    "TensorFlow, normalized": (tensorflow_normalized, "csv", {"train": COUNT}),
    "AutoML": (automl, "csv", {"train": 4, "val": 2}),
    "Open Images": (open_images, "openimages", {"train": 4, "val": 2}),
    "Open Images of FiftyOne": (open_images_fiftyone, "openimages", {"train": 4, "val": 2}),
    "Open Images, one file": (open_images_subset, "openimages", {"train": 4, "val": 2}),
    "Roboflow YOLO": (roboflow_yolo, "yolo", {"train": 4, "val": 2}),
    "CVAT Ultralytics": (cvat_ultralytics, "yolo", {"train": 4, "val": 2}),
    "YOLO of Windows": (windows_yolo, "yolo", {"train": COUNT}),
    "YOLO of another machine": (colab_yolo, "yolo", {"train": COUNT}),
    "YOLO segmentation": (yolo_segments, "yolo", {"train": COUNT}),
    "YOLO oriented boxes": (yolo_oriented, "yolo", {"train": COUNT}),
    "YOLO pose": (yolo_pose, "yolo", {"train": COUNT}),
    "YOLO pose without visibility": (yolo_pose_flat, "yolo", {"train": COUNT}),
    "KITTI": (kitti, "kitti", {"train": COUNT}),
    "VIA CSV": (via_csv, "via_csv", {"train": COUNT}),
}
