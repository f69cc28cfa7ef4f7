"""Recording, reading and learning from demonstrations: LeRobotDataset v3.0 in and out, and the trainer."""
