"""Pipeline of one cell: calibration, block loop, checkpoints and costs."""
