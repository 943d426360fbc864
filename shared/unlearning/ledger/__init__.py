"""Deletion requests and what became of them: append-only events, batches, and copies that nobody can rewrite unseen.

Ids of people are in one place alone, the restricted prefix of the object store (`vault`); everything else here knows
requests by keyed digests (`pseudonyms`).
"""
