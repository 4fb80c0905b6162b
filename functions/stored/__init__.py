"""Broker settings in a database, loaded with DATABASE_URL only; the only one with SQLAlchemy. May import `mqtt`."""
