"""What ``rcnn-ext`` and its commands say of themselves."""

DESCRIPTION = "Train, evaluate and run R-CNN detectors, and compare their operators."

EPILOG = """\
A first run, without any data of your own:
  rcnn-ext demo --out demo-out

Your own COCO-format data:
  rcnn-ext train faster_rcnn_coco --data DATA --out runs/first
  rcnn-ext eval runs/first --data DATA
  rcnn-ext detect runs/first photo.jpg folder/ --out found

rcnn-ext COMMAND --help explains a command.
"""

TRAIN_EPILOG = """\
A recipe is a YAML file. Any of its values can be replaced on the command line:
  rcnn-ext train faster_rcnn_coco --data DATA --out runs/a optimizer.lr=0.01 data.batch_size=4
  rcnn-ext train faster_rcnn_coco --data DATA --out runs/b data.classes='[cat, dog]'
  rcnn-ext train faster_rcnn_coco --data DATA --out runs/c model.weights_backbone=null
  rcnn-ext train faster_rcnn_synthetic --data shapes --out runs/d --max-steps 100
The last makes its own data. --show prints a recipe with all its values.

DATA is a folder such as
  DATA/annotations/instances_train2017.json   or   DATA/instances_train.json
  DATA/annotations/instances_val2017.json          DATA/instances_val.json
  DATA/train2017/*.jpg, DATA/val2017/*.jpg         DATA/images/*.jpg
and other places are named with data.train_annotations=, data.train_images=,
data.val_annotations= and data.val_images=.

Ctrl-C finishes the step, saves last.ckpt and stops; --resume goes on from there.

On several GPUs, and on several machines with torchrun's --nnodes and --rdzv-endpoint:
  torchrun --nproc-per-node 4 -m rcnn_ext train faster_rcnn_coco --data DATA --out runs/e
data.batch_size is that of all together, so that the results are those of one process.
"""

EVAL_EPILOG = """\
examples:
  rcnn-ext eval runs/first --data DATA
  rcnn-ext eval runs/first/last.ckpt --data DATA --annotations other.json --images pictures
"""

DETECT_EPILOG = """\
examples:
  rcnn-ext detect runs/first photo.jpg --out found
  rcnn-ext detect runs/first folder/ --out found --draw-score 0.3
  rcnn-ext detect runs/first 'film/frame_*.png' --out found
  rcnn-ext detect runs/masks csv/test.csv --out found

A CSV file names pictures, relative to its folder or to images/ beside it; of a localizer,
submission.csv then has a row for each, in that order and in pixels of the picture on disk.
--out gets detections.json (COCO result format), pictures/ with boxes drawn, and overview.jpg.
An image's id is its file name where all are numbers, as COCO's are, and its place in the list,
counted from 1, otherwise; file_name is there in any case.
"""


EXPORT_EPILOG = """\
examples:
  rcnn-ext export runs/first --out detector.safetensors
  rcnn-ext export runs/first --out detector.pt2 --size 640x480

.safetensors has the weights; the recipe and the names of the classes are in its metadata.
.pt2 is a program of torch.export for images of one size: it runs with torch and the operators of
this package (import rcnn_ext.ops), without the code of the models.
rcnn-ext detect and rcnn-ext eval take both in the place of RUN.
"""
