"""What stages share that learn from answers which people compared or labelled."""
