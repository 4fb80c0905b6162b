"""Encrypts the broker's password for the database, and reads it again: the only user of Fernet."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from functions.stored.errors import CredentialsUnreadableError


class PasswordCipher:
    """MultiFernet over some keys: the first encrypts, all decrypt. At least one key; each as `Fernet.generate_key`."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._fernet = MultiFernet([Fernet(key.get_secret_value()) for key in keys])

    def encrypt(self, secret: SecretStr) -> str:
        """Return what may be stored."""
        return self._fernet.encrypt(secret.get_secret_value().encode()).decode()

    def decrypt(self, token: str) -> SecretStr:
        """Return the secret again. Raises `CredentialsUnreadableError`, also for what was never one of our tokens."""
        try:
            return SecretStr(self._fernet.decrypt(token.encode()).decode())
        except InvalidToken:
            raise CredentialsUnreadableError from None

    def rotate(self, token: str) -> str:
        """Return the same secret, encrypted with the first key. Raises `CredentialsUnreadableError`."""
        try:
            return self._fernet.rotate(token.encode()).decode()
        except InvalidToken:
            raise CredentialsUnreadableError from None
