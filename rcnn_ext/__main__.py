"""``python -m rcnn_ext`` is ``rcnn-ext``."""

import sys

from rcnn_ext.cli.main import main

sys.exit(main())
