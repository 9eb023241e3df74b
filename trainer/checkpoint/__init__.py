"""Checkpoints: written whole or not at all, verified before they are used, resumed to the bit or on another number of processes.

    PLACE/step-00000100/
        rank-00000.safetensors  what process 0 held: flat masters and moments, its random states; and batch statistics, frozen parameters
        rank-00001.safetensors  the same of process 1; without ZeRO its random states only
        checkpoint.json         what it is, what lies where in those files, size and sha256 of each; written last
    PLACE/latest                the name of the newest complete one, for people

PLACE is `run.checkpoints`, a shared folder or s3://, or `checkpoints` in the run's folder. A checkpoint is complete when its
checkpoint.json is there: every other file was written and flushed before. So a kill at any moment costs the steps since the last one and
nothing else; what it left behind is removed by the next save. Before use every byte is compared with checkpoint.json; a checkpoint that
fails is named, put aside (on s3:// its record is removed) and the one before it is taken.

A process that finds the layout it wrote takes its file back as it is: the same bits. Another number of processes or another ZeRO stage
cuts the same numbers anew (`layout.py`). Files are JSON and safetensors: reading them runs no code.
"""

from trainer.checkpoint.layout import MASTER
from trainer.checkpoint.record import (
    RECORD,
    CheckpointRecord,
    Identity,
    OtherVersion,
    Position,
    check_version,
    complete_tags,
    damage,
    place_of,
    rank_file,
    read_record,
    step_of,
    tag_of,
    vocabulary_of,
)
from trainer.checkpoint.resuming import find, go_back, named_weights, resume
from trainer.checkpoint.saving import save
from trainer.checkpoint.state import EMA

__all__ = [
    "EMA",
    "MASTER",
    "RECORD",
    "CheckpointRecord",
    "Identity",
    "OtherVersion",
    "Position",
    "check_version",
    "complete_tags",
    "damage",
    "find",
    "go_back",
    "named_weights",
    "place_of",
    "rank_file",
    "read_record",
    "resume",
    "save",
    "step_of",
    "tag_of",
    "vocabulary_of",
]
