"""One file per data set: from its files on disk to records."""
