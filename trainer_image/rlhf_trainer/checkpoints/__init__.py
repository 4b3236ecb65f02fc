"""What training leaves on a disk or in an object store, and whether it may be read again."""
