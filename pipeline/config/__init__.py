"""Configuration: what Hydra composes becomes typed objects; Hydra and OmegaConf stop here."""
