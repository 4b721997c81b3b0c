"""Work that is divided among any number of processes, and goes on where it stopped."""

from rcnn_ext.shards.lines import LineFile, last_record, read_records
from rcnn_ext.shards.run import ShardedRun, ShardState, check_settings, fingerprint_of
from rcnn_ext.shards.shard import Shard

__all__ = [
    "LineFile",
    "Shard",
    "ShardState",
    "ShardedRun",
    "check_settings",
    "fingerprint_of",
    "last_record",
    "read_records",
]
