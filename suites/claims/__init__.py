"""The ledger of published claims: one TOML file a family, read as package data through ``speedclaim.claims``."""
