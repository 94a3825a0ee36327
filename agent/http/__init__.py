"""The daemon's window: metrics, health, status and a page, for reading only.

One thread serves all clients. Sockets do not block; each connection is a generator that says what
it waits for (its TLS handshake, a request, room in the client's window) and is resumed when that
is there, so a client that is slow, silent or broken costs its own connection and nothing else:
some KiB, until a deadline that covers the whole request and not each byte of it. When there are
too many connections, the one that has been waiting longest without a request gives way, so that a
newcomer always gets its turn; what answers that nobody fetches may hold is limited likewise.

One request per connection: what follows the first is never looked at, so no body, pipeline or
length can be misread. After the answer the rest of what the client sends is read and thrown away
for a moment: closing with unread data resets the connection, and with it the answer.

Not http.server: its deadline starts again with each byte, and it has no limit on threads. The
thread answers by calling the functions in `Answers`, which have to be quick and lock nothing.
"""

from agent.http.listener import CertificateRefused, PortInUse
from agent.http.server import Answers, Limits, Server, serving

__all__ = ["Answers", "CertificateRefused", "Limits", "PortInUse", "Server", "serving"]
