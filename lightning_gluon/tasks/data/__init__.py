"""Images and text: what is read, how it is split, in which order it comes."""
