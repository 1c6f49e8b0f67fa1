"""`quad export`: a published selection written for training, in a format of which each is an extension."""
