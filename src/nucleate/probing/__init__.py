"""Any model, any labelled prompts: which tasks are separate, at which layer, and which prompts look mislabelled."""
