"""What the server does: registrations, lookups, stores, sessions, management. No socket, no HTTP."""
