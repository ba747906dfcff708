"""Tar shards in the WebDataset layout: packing, index, dataset."""
