"""From files to training samples: records, readers, images, tokens, packed batches."""
