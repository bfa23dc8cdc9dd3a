"""All that ranks: arrays and tensors in and out, no files of the lake, no clock."""
