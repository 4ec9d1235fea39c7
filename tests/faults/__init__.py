"""For each suite a part that is sound, and for each of its tests one that is not: what third parties get wrong."""
