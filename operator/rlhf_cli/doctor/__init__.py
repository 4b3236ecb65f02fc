"""rlhfctl doctor: what a cluster needs, checked one by one, each with what to do about it."""
