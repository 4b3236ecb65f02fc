"""From a pod to its ranks: meeting the other pods, torchrun's agent, whose line is whose."""
