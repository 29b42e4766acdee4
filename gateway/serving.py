"""What every request of one process is served with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from capture.confidence import Signal
from capture.familiarity import Familiarity
from capture.redaction import RedactConfig, Redactor
from capture.writer import Spool
from gateway.config import GatewayConfig
from gateway.errors import GatewayError
from gateway.exchange import Exchange
from gateway.gate import Gate
from gateway.hold import Hold
from gateway.keeper import Keeper
from gateway.routing import RouteTable
from gateway.upstream import Upstream
from gateway.wiring import Wire


@dataclass(slots=True)
class Serving:
    """What every request needs; ``table`` is replaced whole when a rollout moves, by ``swap``.

    Attributes:
        on_begun: Called when an exchange goes to its engine.
        on_ended: Called once per exchange, when its client has been served.
        keeper: Takes ended exchanges into the spool.
        redactor: What is replaced in every text before it is written.
        wire: Takes rows from answers, for routes that ask for it.
        on_refused: Called when a request is refused before it becomes an exchange.
        on_cascade: Called with a student's exchange, what was weighed, and whose answer its client
            gets.
        trainings: What the students of routes were trained on, where their prompts are weighed.
        gate: Lets requests in.
        hold: Where they wait while their route's engine is exchanged.
    """

    config: GatewayConfig
    table: RouteTable
    upstream: Upstream
    spool: Spool[Exchange]
    on_begun: Callable[[Exchange], None]
    on_ended: Callable[[Exchange], None]
    keeper: Keeper
    redactor: Redactor = field(default_factory=lambda: Redactor(RedactConfig()))
    wire: Wire | None = None
    on_refused: Callable[[GatewayError], None] = lambda _: None
    on_cascade: Callable[[Exchange, Signal, str], None] = lambda _exchange, _signal, _outcome: None
    trainings: Mapping[str, Familiarity] = field(default_factory=dict)
    gate: Gate = field(default_factory=Gate)
    hold: Hold = field(default_factory=Hold)

    def swap(self, table: RouteTable) -> None:
        """Replace the table, and let in who has waited for one of its routes."""
        self.table = table
        self.hold.let_in([name for name, route in table.routes.items() if not route.is_held])
