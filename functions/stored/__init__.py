"""What is kept in a database; the only folder with SQLAlchemy, loaded only where needed. May import `mqtt`, `fleet`."""
