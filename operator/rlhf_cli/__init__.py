"""rlhfctl: validate, render and run RLHFJobs, and look at what came out."""
