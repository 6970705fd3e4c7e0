"""Tables of names and classes, one file per library: all that is known of one library stands in one file."""
