"""Training a model by a recipe, with Lightning."""
