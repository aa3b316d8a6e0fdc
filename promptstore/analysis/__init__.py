"""What a prompt says: nearest tokens, how tight they lie, repeated virtual tokens (Lester et al. 2021, section 7)."""
