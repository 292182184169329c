"""From Hydra's configs to a checked config: composition, schema, rules between keys, registries."""
