"""Video captioning from compressive snapshots: the task, and what is provided for it."""
