"""What it means that the API server refuses a change, in its words."""

from __future__ import annotations

import re
from typing import Final

from rlhf_operator.api import ApiError, Object
from rlhf_operator.controller import Refused

QUOTA: Final = ("exceeded quota", "status unknown for quota")
"""What the API server says where a quota is used up, and where it is so new that nobody has added
up yet."""
DENIED: Final = re.compile("denied (the )?request")
"""As the API server words what admission policies, and webhooks, say."""
NO_RIGHT: Final = re.compile(r'User "[^"]*" cannot |RBAC: ')
"""As it words that somebody has no right (apiserver, responsewriters.Forbidden)."""
USED: Final = re.compile(r", used: .*?(?=, limited: )")


def refusal(error: ApiError, item: Object, doing: str = "") -> Exception:
    """What the API server says of a change that it does not take; passing errors stay errors.

    But for a webhook of somebody else that does not answer: that lasts until somebody mends it. One
    that says no may do so with any code.
    `doing`: what was to be done to the object, where it was not to be made.
    """
    said = _said(error, item, doing)
    if error.code >= 500 and "failed calling webhook" in str(error):
        return Refused("Reconciling", "WebhookFailed", said)
    if error.is_passing and not is_denied(error):
        return error
    if error.code == 403 and any(text in str(error) for text in QUOTA):
        return Refused("Reconciling", "QuotaExceeded", said)
    if error.code == 403 and "being terminated" in str(error):
        return Refused("Reconciling", "NamespaceTerminating", said)
    if error.code == 403:
        return Refused("Stalled", "Forbidden", said)
    return Refused("Stalled", "ChildRefused", said)


def lasting(error: ApiError, item: Object, doing: str = "") -> Refused:
    """What should have passed by now, and may still."""
    return Refused("Reconciling", "RequestFails", _said(error, item, doing))


def is_denied(error: ApiError) -> bool:
    """Whether a policy or a webhook has looked at the object, and says no."""
    return bool(DENIED.search(str(error)))


def is_of_rights(error: ApiError) -> bool:
    """Whether whoever asks has no right to; all else that is forbidden, an admission plug-in has
    looked at."""
    return error.code == 403 and bool(NO_RIGHT.search(str(error)))


def _said(error: ApiError, item: Object, doing: str) -> str:
    told = without_use(str(error))
    return f"{doing} {item['kind']} {item['metadata']['name']}: {told}".strip()


def without_use(text: str) -> str:
    """What a quota says, without what others use at that moment, which would have the status
    written again and again."""
    return USED.sub("", text)
