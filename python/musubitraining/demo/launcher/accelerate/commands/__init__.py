"""The commands of the stand-in: only `launch`."""
