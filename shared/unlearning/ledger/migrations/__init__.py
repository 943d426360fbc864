"""The steps from one layout of the ledger's tables to the next, in order."""
