"""Pure: what can go wrong with the stored settings."""

from __future__ import annotations


class StoreUnavailableError(Exception):
    """The database cannot be used now. The message says why and what to do, and holds no credentials."""


class StoreDamagedError(StoreUnavailableError):
    """The database's file is damaged: waiting does not help."""


class VersionConflictError(Exception):
    """Somebody else stored settings in between."""

    def __init__(self, current: int) -> None:
        """Keep the version that is stored now; 0 where nothing is."""
        self.current = current
        super().__init__(f"the stored settings have version {current} by now")


class NoEncryptionKeyError(Exception):
    """There is a password to encrypt, and no key."""

    def __init__(self) -> None:
        super().__init__(
            "ENCRYPTION_KEYS must be set before a password can be stored, e.g. from "
            "`openssl rand -base64 32 | tr '+/' '-_'`"
        )


class PasswordNeededError(Exception):
    """No password was sent along, and the stored one belongs to another broker, port, TLS or user name."""


class CredentialsUnreadableError(Exception):
    """None of ENCRYPTION_KEYS decrypts the stored password."""

    def __init__(self) -> None:
        super().__init__(
            "credentials_unreadable: none of ENCRYPTION_KEYS decrypts the stored password. Bring back the key that "
            "encrypted it, or store the password again"
        )
