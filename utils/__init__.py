"""Small single-noun modules that the rest stands on; nothing here knows a model, a dataset or a method."""
