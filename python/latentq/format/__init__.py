"""Files of a dataset: recipe, card, lists."""
