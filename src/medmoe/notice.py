"""The sentence that stands under whatever is shown to a person or written to a file."""

from __future__ import annotations

RESEARCH_ONLY = "Research use only, not a medical device."
