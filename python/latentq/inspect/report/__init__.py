"""The report on a dataset: facts, and the HTML page that shows them."""
