"""L2: storage behind adapters. One folder per adapter type; files of this folder are what adapters share."""
