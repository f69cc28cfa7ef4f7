"""Recording, reading and learning from demonstrations: LeRobotDataset v3.0 in and out, and the trainer."""

from pi0_control.train.dataset import Dataset, Episode
from pi0_control.train.writer import DatasetWriter

__all__ = ["Dataset", "DatasetWriter", "Episode"]
