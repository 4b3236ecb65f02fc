"""The contract: the RLHFJob resource and what passes between operator and trainer.

Everything that a manifest may say is declared here once; validation, the CRD, the trainer's
configuration and the reference documentation are read from these models.
"""
