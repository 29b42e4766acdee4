"""What a message asks for, and the one line of JSON that says so."""

import json
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right answer to one message; every field comes from a closed vocabulary.

    Attributes:
        product: None where no product is named.
        quantity: None where no count is stated; "my laptop" and "a laptop" state 1.
        urgency: ``low``, ``normal`` or ``high``; ``normal`` where the customer does not say.
        contact: ``email``, ``phone``, ``text``, or ``any`` where the customer does not say.
    """

    intent: str
    product: str | None
    quantity: int | None
    urgency: str = "normal"
    contact: str = "any"

    def to_json(self) -> str:
        """Return the canonical line: fields in their order here, no spaces."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read a line back.

        Raises:
            ValueError: If it is not JSON.
            TypeError: If its fields are not a ticket's.
        """
        return cls(**json.loads(line))
