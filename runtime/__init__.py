"""What makes the method fast, distributed, unkillable or pretty. The idea is in the files above; skip these at first."""
