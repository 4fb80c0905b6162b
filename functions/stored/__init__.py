"""Broker settings in a database. Loaded with DATABASE_URL only; the only folder that may load SQLAlchemy."""
