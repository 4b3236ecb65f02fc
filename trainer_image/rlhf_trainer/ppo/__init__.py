"""What PPO's stage is made of: its models, their rewards, the experience, the update."""
