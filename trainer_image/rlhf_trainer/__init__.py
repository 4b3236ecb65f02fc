"""The trainer that runs inside a stage's pods: SFT, reward model, PPO, DPO and relatives."""
