"""``python -m rcnn_ext`` is ``rcnn-ext``."""

import sys

from rcnn_ext.cli import main

sys.exit(main())
