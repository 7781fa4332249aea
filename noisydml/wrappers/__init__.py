"""The drop-in losses, one file a method."""
