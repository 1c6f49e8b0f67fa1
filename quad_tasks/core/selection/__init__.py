"""Select documents: predict influence, leave near-duplicates out, fill the token budget."""
