"""The command ``rcnn-ext``: one module per command."""
