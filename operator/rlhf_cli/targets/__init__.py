"""Where jobs are: on a cluster, or as runs in directories of this machine."""
