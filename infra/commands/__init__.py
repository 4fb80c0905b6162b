"""The commands that people type, one module each; `infra.cli` registers them."""
