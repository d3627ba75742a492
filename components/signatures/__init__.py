"""What a task leaves behind: statistics, a mixture, calibrated scores and a classifier."""
