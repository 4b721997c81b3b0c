"""``python -m rcnn_ext`` is ``rcnn-ext``."""

import sys

from .cli import main

sys.exit(main())
