"""Compare the operators with ``torchvision.ops`` and the pure-PyTorch reference.

Every result is compared with a float64 reference before it is timed; the contenders run
interleaved in one process, on equal inputs and with an equal number of threads. ``rcnn-ext bench
--help`` lists the options, ``benchmarks/README.md`` explains the output.
"""
