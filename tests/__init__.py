"""Tests: `unit` opens no socket, `integration` and `e2e` use real parts."""
