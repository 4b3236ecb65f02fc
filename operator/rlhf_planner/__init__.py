"""What a job takes of devices, disks and time, before it takes them. Pure arithmetic."""
