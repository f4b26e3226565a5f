"""Small modules that everything else uses. None of them knows a model, a dataset or a method."""
