"""Faults at every call of the operator: a proxy that injects them, and the campaign that judges.

operator process ── http ──► proxy ── https ──► API server
                               └─ at the n-th write: SIGKILL, a refusal, an answer that is lost
"""
