"""Real parts on this machine: a broker, object stores, the programs that they need, certificates."""
